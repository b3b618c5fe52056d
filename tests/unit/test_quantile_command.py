"""The closed-form demonstration from the command line."""

from overopt.cli.main import main


def test_quantile_demonstration(capsys):
    assert main(["run", "quantile"]) == 0
    out = capsys.readouterr().out
    assert "best_of_poisson" in out
    discrepancies = [float(line.split()[-2]) for line in out.splitlines()[2:]]
    assert len(discrepancies) > 20 and max(map(abs, discrepancies)) < 4
