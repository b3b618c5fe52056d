"""The figures of records, one file each, found by the name of the file.

A figure's file has ``draw(results)``: the matplotlib Figure of a `overopt.records.view.ResultsView`,
or None where its records do not hold what the figure shows. It may have ``PICTURE``, the name of the
picture's file (without it, the figure's own), and ``sidecar(results)``, entries for the JSON beside
the picture. A file of this folder without ``draw`` helps the others, or draws something else than
records. A user's own figure is such a file too: ``overopt figures RESULTS --figure my_figure.py``.
"""
