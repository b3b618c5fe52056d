"use strict";
// Draws the curves and shows the responses of the JSON above. Text of responses is only ever set as text.
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const COLORS = ["#d55e00", "#0072b2", "#009e73", "#cc79a7", "#e69f00", "#56b4e9"];
  const WIDTH = 460, HEIGHT = 320, LEFT = 46, BOTTOM = 44, TOP = 10, RIGHT = 12;
  const cursors = {};  // method -> √KL of the point whose responses are shown
  const colors = new Map();
  for (const c of data.curves) {
    const key = c.proxy + "\u0000" + c.treatment + "\u0000" + c.pairs;
    if (!colors.has(key)) colors.set(key, COLORS[colors.size % COLORS.length]);
    c.color = colors.get(key);
  }

  function element(name, attributes = {}, text) {
    const made = document.createElement(name);
    for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
    if (text !== undefined) made.textContent = text;
    return made;
  }
  function shape(name, attributes, text) {
    const made = document.createElementNS("http://www.w3.org/2000/svg", name);
    for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
    if (text !== undefined) made.textContent = text;
    return made;
  }
  const unique = (values) => [...new Set(values)];
  const signed = (x) => (x < 0 ? "−" : "") + Math.abs(x).toFixed(2);

  // Switches: a box for each value that occurs; a curve is drawn where all its values are on.
  const FACETS = [["method", "method"], ["proxy", "proxy"], ["pairs", "comparisons"], ["treatment", "treatment"], ["seed", "seed"]];
  const on = {};
  const form = document.getElementById("switches");
  for (const [key, title] of FACETS) {
    const values = unique(data.curves.map((c) => c[key]));
    on[key] = new Set(values);
    if (key === "seed") on[key] = new Set(values.includes("mean") ? ["mean"] : values);
    if (key === "pairs") on[key] = new Set([Math.max(...values)]);
    if (values.length < 2) continue;
    const box = element("fieldset");
    box.append(element("legend", {}, title));
    for (const value of values) {
      const label = element("label"), input = element("input", { type: "checkbox", "data-facet": key, value });
      input.checked = on[key].has(value);
      input.addEventListener("change", () => {
        if (input.checked) on[key].add(value); else on[key].delete(value);
        draw();
      });
      label.append(input, " " + (value === "" ? "none" : value));
      box.append(label);
    }
    form.append(box);
  }
  const intervals = element("fieldset"), label = element("label"), withBands = element("input", { type: "checkbox", id: "intervals" });
  withBands.checked = true;
  withBands.addEventListener("change", draw);
  intervals.append(element("legend", {}, "intervals"), label);
  label.append(withBands, " shown");
  form.append(intervals);
  form.addEventListener("submit", (event) => event.preventDefault());

  function ticks(low, high) {
    const rough = (high - low) / 5, power = 10 ** Math.floor(Math.log10(rough));
    const step = [1, 2, 5, 10].map((f) => f * power).find((s) => s >= rough);
    const found = [];
    for (let i = Math.ceil(low / step); i * step <= high + 1e-9; i++) found.push(+(i * step).toPrecision(6));
    return found;
  }

  function panel(method, curves) {
    const figure = element("figure", { style: "margin:0" });
    figure.append(element("h3", {}, method));
    const svg = shape("svg", { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, role: "img", "aria-label": `Gold and proxy against √KL, ${method}` });
    const bands = withBands.checked;
    const ys = curves.flatMap((c) => [...c.gold, ...c.proxy_gain, ...(bands ? [...c.low, ...c.high] : [])]).filter((y) => y !== null);
    const right = Math.max(...curves.flatMap((c) => c.x), 0.1);
    let low = Math.min(0, ...ys), high = Math.max(0.1, ...ys);
    [low, high] = [low - 0.04 * (high - low), high + 0.04 * (high - low)];
    const X = (x) => LEFT + (x / right) * (WIDTH - LEFT - RIGHT);
    const Y = (y) => TOP + ((high - y) / (high - low)) * (HEIGHT - TOP - BOTTOM);
    for (const y of ticks(low, high)) {
      svg.append(shape("line", { class: y === 0 ? "zero" : "grid", x1: LEFT, x2: WIDTH - RIGHT, y1: Y(y), y2: Y(y) }));
      svg.append(shape("text", { x: LEFT - 6, y: Y(y) + 4, "text-anchor": "end" }, String(y).replace("-", "−")));
    }
    for (const x of ticks(0, right)) {
      svg.append(shape("line", { class: "axis", x1: X(x), x2: X(x), y1: HEIGHT - BOTTOM, y2: HEIGHT - BOTTOM + 4 }));
      svg.append(shape("text", { x: X(x), y: HEIGHT - BOTTOM + 18, "text-anchor": "middle" }, x));
    }
    svg.append(shape("line", { class: "axis", x1: LEFT, x2: WIDTH - RIGHT, y1: HEIGHT - BOTTOM, y2: HEIGHT - BOTTOM }));
    svg.append(shape("text", { x: (LEFT + WIDTH) / 2, y: HEIGHT - 6, "text-anchor": "middle" }, "√KL (√nats)"));
    svg.append(shape("text", { transform: `translate(11 ${HEIGHT / 2 - 14}) rotate(-90)`, "text-anchor": "middle" }, "gain (sd)"));
    const path = (xs, values) => xs.map((x, i) => `${i ? "L" : "M"}${X(x).toFixed(1)} ${Y(values[i]).toFixed(1)}`).join("");
    for (const c of curves) {
      if (bands && c.low.every((y) => y !== null)) {
        const back = path([...c.x].reverse(), [...c.high].reverse()).replace("M", "L");
        svg.append(shape("path", { class: "interval", d: path(c.x, c.low) + back + "Z", fill: c.color, "fill-opacity": 0.18 }));
      }
    }
    for (const c of curves) {
      svg.append(shape("path", { class: "proxy", d: path(c.x, c.proxy_gain), fill: "none", stroke: c.color, "stroke-dasharray": "5 4" }));
      svg.append(shape("path", { class: "gold", d: path(c.x, c.gold), fill: "none", stroke: c.color, "stroke-width": 1.8 }));
      c.x.forEach((x, i) => {
        const dot = shape("circle", { cx: X(x), cy: Y(c.gold[i]), r: 3, fill: c.color });
        dot.append(shape("title", {}, `${c.name}\n${c.axis} ${c.value[i]}, √KL ${x.toFixed(2)}\ngold ${signed(c.gold[i])}, proxy ${signed(c.proxy_gain[i])}`));
        svg.append(dot);
      });
    }
    if (cursors[method] !== undefined && cursors[method] <= right) {
      svg.append(shape("line", { class: "cursor", x1: X(cursors[method]), x2: X(cursors[method]), y1: TOP, y2: HEIGHT - BOTTOM }));
    }
    figure.append(svg);
    return figure;
  }

  function draw() {
    const shown = data.curves.filter((c) => FACETS.every(([key]) => on[key].has(c[key])));
    const panels = unique(shown.map((c) => c.method)).map((m) => panel(m, shown.filter((c) => c.method === m)));
    const nothing = element("p", {}, "Nothing is switched on.");
    document.getElementById("panels").replaceChildren(...(panels.length ? panels : [nothing]));
    const entries = new Map(shown.map((c) => [c.color + c.label, c]));
    document.getElementById("legend").replaceChildren(...[...entries.values()].map((c) => {
      const entry = element("span");
      entry.append(element("span", { class: "swatch", style: `border-color:${c.color}` }), c.label);
      return entry;
    }));
  }

  // Viewers: one for each method, with a curve to choose and a slider along its points.
  const KINDS = { gold: "lowest gold", intent: "lowest intent", gap: "proxy furthest above gold", typical: "typical" };
  function card(sample, axis) {
    const box = element("div", { class: "card" });
    box.append(element("h3", {}, sample.why.map((w) => KINDS[w] || w).join(", ")));
    box.append(element("p", { class: "prompt" }, data.prompts[sample.prompt]));
    box.append(element("p", { class: "response" }, sample.response));
    const scores = [`gold ${signed(sample.gold)}`, `proxy ${signed(sample.proxy)}`];
    if (sample.intent !== null) scores.push(`intent ${signed(sample.intent)}`);
    scores.push(`${sample.tokens} tokens${sample.ended ? "" : ", cut off"}`);
    box.append(element("p", { class: "scores" }, scores.join(" · ")));
    return box;
  }
  function viewer(method, curves) {
    const box = element("div", { class: "viewer", "data-method": method });
    const title = element("h3", {}, method), row = element("div", { class: "slide" });
    const select = element("select", { "aria-label": `curve of ${method}` });
    curves.forEach((c, i) => select.append(element("option", { value: i }, c.name)));
    const slider = element("input", { type: "range", min: 0, step: 1, "aria-label": `point of ${method}` });
    const where = element("output"), cards = element("div", { class: "cards" });
    function show() {
      const c = curves[select.value], points = Object.keys(data.samples[c.id]).map(Number);
      slider.max = points.length - 1;
      const value = points[Math.min(slider.value, points.length - 1)], i = c.value.indexOf(value);
      where.textContent = `${c.axis} ${value} · √KL ${c.x[i].toFixed(2)} · gold ${signed(c.gold[i])} · proxy ${signed(c.proxy_gain[i])}`;
      slider.setAttribute("aria-valuetext", where.textContent);
      cards.replaceChildren(...data.samples[c.id][value].map((s) => card(s, c.axis)));
      cursors[method] = c.x[i];
      draw();
    }
    slider.addEventListener("input", show);
    select.addEventListener("change", show);
    row.append(select, slider, where);
    box.append(title, row, cards);
    slider.max = Object.keys(data.samples[curves[0].id]).length - 1;
    slider.value = slider.max;
    show();
    return box;
  }
  const read = data.curves.filter((c) => data.samples[c.id]);
  for (const method of unique(read.map((c) => c.method))) {
    document.getElementById("viewers").append(viewer(method, read.filter((c) => c.method === method)));
  }
  draw();
})();
