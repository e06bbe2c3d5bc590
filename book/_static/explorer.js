/* The explorers: what a figure's sliders change. Plain JavaScript, no dependencies, no network.

   book/_ext/explorer_figures.py draws the same figures from the package for readers without JavaScript, and
   tests/test_explorers.py compares the numbers of the two. */
"use strict";

const Explorer = (() => {
  // ---- the mathematics, as in focal_tutorial/focal_term.py: x is the signed logit x_t -------------------------------

  function parts(x) {
    const e = Math.exp(-Math.abs(x)); // in (0, 1]: cannot overflow
    const wrong = x < 0;
    const ce = Math.log1p(e) + (wrong ? -x : 0); // -log p_t
    const q = (wrong ? 1 : e) / (1 + e); // 1 - p_t, never formed by a subtraction
    const p = (wrong ? e : 1) / (1 + e);
    return {ce, q, p};
  }

  function loss(x, gamma) {
    const {ce, q} = parts(x);
    return Math.pow(q, gamma) * ce;
  }

  function slope(x, gamma) { // dFL/dx_t
    const {ce, q, p} = parts(x);
    return -Math.pow(q, gamma) * (gamma * p * ce + q);
  }

  const sigmoid = (x) => parts(x).p;
  const logit = (p) => Math.log(p / (1 - p));

  // [from the objects, from the background] of the summed loss and gradient, for four losses.
  function shares(state) {
    const {positives, negatives, x_positive, x_negative, gamma, alpha} = state;
    const losses = {
      ce: [0, 1, 1], balanced: [0, alpha, 1 - alpha], focal: [gamma, 1, 1], both: [gamma, alpha, 1 - alpha],
    };
    const result = {loss: {}, slope: {}};
    for (const [name, [g, a, b]] of Object.entries(losses)) {
      for (const [kind, f] of [["loss", loss], ["slope", (x, k) => Math.abs(slope(x, k))]]) {
        result[kind][name] = [a * positives * f(x_positive, g), b * negatives * f(-x_negative, g)];
      }
    }
    return result;
  }

  // ---- boxes: rows [x1, y1, x2, y2, label, score], best score first --------------------------------------------------

  function iou(a, b) {
    const wide = Math.min(a[2], b[2]) - Math.max(a[0], b[0]);
    const high = Math.min(a[3], b[3]) - Math.max(a[1], b[1]);
    const inter = Math.max(wide, 0) * Math.max(high, 0);
    return inter / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - inter);
  }

  // Greedy, class by class: positions of the rows that stay, as torchvision.ops.batched_nms.
  function suppress(rows, limit) {
    const kept = [];
    rows.forEach((row, i) => {
      if (!kept.some((k) => rows[k][4] === row[4] && iou(rows[k], row) > limit)) kept.push(i);
    });
    return kept;
  }

  // Which rows are right and which objects were found, as focal_tutorial.plotting.judge_detections.
  function judge(truth, rows, least = 0.5) {
    const seen = truth.map(() => false);
    const right = rows.map((row) => {
      let best = -1, overlap = 0;
      truth.forEach((object, m) => {
        const value = seen[m] || object[4] !== row[4] ? 0 : iou(row, object);
        if (value > overlap) [best, overlap] = [m, value];
      });
      if (overlap >= least) seen[best] = true;
      return overlap >= least;
    });
    return {right, seen};
  }

  function detect(data, score, limit) {
    const above = data.detections.filter((row) => row[5] >= score);
    const kept = suppress(above, limit);
    const stay = new Set(kept);
    const rows = kept.map((i) => above[i]);
    const {right, seen} = judge(data.truth, rows);
    const hits = right.filter(Boolean).length;
    return {
      above: above.length, rows, removed: above.filter((_, i) => !stay.has(i)), right, seen, hits,
      precision: hits / rows.length, recall: hits / data.truth.length,
      f1: 2 * hits / (rows.length + data.truth.length),
    };
  }

  // ---- numbers as text, written the same way in explorer_figures.py --------------------------------------------------

  function short(value) {
    if (value === 0) return "0";
    const [digits, exponent] = value.toExponential(2).split("e");
    const rounded = Number(value.toExponential(2));
    if (Math.abs(rounded) >= 1e-5 && Math.abs(rounded) < 1e6) {
      return rounded.toLocaleString("en-US", {maximumFractionDigits: 10});
    }
    const raised = String(Number(exponent)).replace(/[-\d]/g, (c) => (c === "-" ? "⁻" : "⁰¹²³⁴⁵⁶⁷⁸⁹"[c]));
    return `${Number(digits)} × 10${raised}`;
  }

  const percent = (share) => (share >= 0.9995 && share < 1 ? "> 99.9\u00a0%" : `${short(100 * share)}\u00a0%`);
  const signed = (value) => short(value).replace("-", "−");
  const count = (value) => value.toLocaleString("en-US");

  function times(ratio) {
    if (Math.abs(ratio - 1) < 0.005) return "the same";
    return `${short(Math.max(ratio, 1 / ratio))} times ${ratio > 1 ? "smaller" : "larger"}`;
  }

  function roundToTwo(value) {
    const unit = 10 ** Math.max(Math.floor(Math.log10(value)) - 1, 0);
    return Math.floor(value / unit + 0.5) * unit;
  }

  // ---- drawing -------------------------------------------------------------------------------------------------------

  const P_T = "<i>p</i><sub>t</sub>", X_T = "<i>x</i><sub>t</sub>";
  const LEFT = 34, TOP = 30, WIDTH = 316, HEIGHT = 190, POINTS = 161, LOSS_TOP = 5;
  const mark = (root, name) => root.querySelector(`[data-mark="${name}"]`);
  const show = (node, shown) => node.classList.toggle("off", !shown);
  const place = (node, values) => Object.entries(values).forEach(([key, v]) => node.setAttribute(key, v));

  function drawLoss(root, state, tell) {
    const onLogit = state.axis === "axis-x";
    const [low, high] = onLogit ? [-LOSS_TOP, LOSS_TOP] : [Math.exp(-LOSS_TOP), 0.9995];
    const across = (v) => LEFT + WIDTH * (onLogit ? (v + LOSS_TOP) / (2 * LOSS_TOP) : v);
    const {gamma, p, alpha, weigh} = state;
    const weights = {ce: [0, 1], object: [gamma, weigh ? alpha : 1], background: [gamma, weigh ? 1 - alpha : 1]};
    const x = logit(p);
    for (const panel of root.querySelectorAll("[data-panel]")) {
      const f = panel.dataset.panel === "loss" ? loss : (v, g) => Math.abs(slope(v, g));
      const down = (value) => TOP + HEIGHT * (1 - value / Number(panel.dataset.top));
      const here = across(onLogit ? Math.max(-LOSS_TOP, Math.min(LOSS_TOP, x)) : p);
      for (const [name, [g, weight]] of Object.entries(weights)) {
        const points = Array.from({length: POINTS}, (_, i) => {
          const v = low + (high - low) * i / (POINTS - 1);
          return `${across(v).toFixed(2)} ${down(weight * f(onLogit ? v : Math.log(v) - Math.log1p(-v), g)).toFixed(2)}`;
        });
        mark(panel, name).setAttribute("d", `M${points.join("L")}`);
        const y = Math.max(TOP, down(weight * f(x, g)));
        place(mark(panel, `dot-${name}`), {cx: here.toFixed(2), cy: y.toFixed(2)});
      }
      mark(panel, "cursor").setAttribute("d", `M${here.toFixed(2)} ${TOP}v${HEIGHT}`);
      for (const name of ["background", "dot-background"]) show(mark(panel, name), weigh);
      for (const axis of panel.querySelectorAll("[data-axis]")) show(axis, (axis.dataset.axis === "x") === onLogit);
    }
    const legend = root.querySelectorAll(".legend li");
    legend[1].textContent = weigh ? `focal loss of objects, γ = ${gamma}, × ${alpha}` : `focal loss, γ = ${gamma}`;
    legend[2].textContent = `of background, × ${short(1 - alpha)}`;
    show(legend[2], weigh);
    root.querySelector('[name="alpha"]').disabled = !weigh;
    tell({gamma, p: short(p), alpha: weigh ? alpha : "off"});
    const [ce, fl, ceSlope, flSlope] = [loss(x, 0), loss(x, gamma), -slope(x, 0), -slope(x, gamma)];
    const weighed = weigh ? ` With α, an object counts ${short(alpha * fl)} and background ${short((1 - alpha) * fl)}.` : "";
    return `At ${P_T} = ${short(p)} (${X_T} = ${signed(x)}), cross entropy is ${short(ce)} and the focal loss ` +
      `${short(fl)}: <b>${times(ce / fl)}</b>. The gradient is ${short(ceSlope)} against ${short(flSlope)}: ` +
      `<b>${times(ceSlope / flSlope)}</b>.${weighed}`;
  }

  function drawShare(root, raw, tell) {
    const state = {...raw, negatives: roundToTwo(10 ** raw.negatives)};
    const parts = shares(state);
    const titles = {
      ce: "cross entropy", balanced: `balanced, α = ${state.alpha}`, focal: `focal loss, γ = ${state.gamma}`,
      both: `focal loss, γ = ${state.gamma}, α = ${state.alpha}`,
    };
    for (const [kind, losses] of Object.entries(parts)) {
      for (const [name, [objects, background]] of Object.entries(losses)) {
        const bar = root.querySelector(`[data-bar="${kind}-${name}"]`);
        const share = objects / (objects + background), edge = 360 * share;
        mark(bar, "name").textContent = titles[name];
        mark(bar, "total").textContent = `total ${short(objects + background)}`;
        place(mark(bar, "background"), {x: edge.toFixed(2), width: (360 - edge).toFixed(2)});
        place(mark(bar, "object"), {width: edge.toFixed(2)});
        mark(bar, "object-text").textContent = `objects ${percent(share)}`;
        mark(bar, "background-text").textContent = `background ${percent(1 - share)}`;
      }
    }
    const {positives: n, negatives: m} = state;
    const p = [short(sigmoid(state.x_positive)), short(sigmoid(state.x_negative))];
    tell({positives: n, negatives: count(m), x_positive: p[0], x_negative: p[1], gamma: raw.gamma, alpha: raw.alpha});
    const part = (kind, name) => percent(parts[kind][name][0] / (parts[kind][name][0] + parts[kind][name][1]));
    return `${n} object${n > 1 ? "s" : ""} with <i>p</i> = ${p[0]} (cross entropy ${short(parts.loss.ce[0] / n)}` +
      `${n > 1 ? " each" : ""}) against ${count(m)} backgrounds with <i>p</i> = ${p[1]} (${short(parts.loss.ce[1] / m)} each). ` +
      `${n > 1 ? "The objects make" : "The object makes"} ${part("loss", "ce")} of the cross entropy and <b>${part("loss", "focal")}</b> of the focal loss; ` +
      `of the gradient, ${part("slope", "ce")} and <b>${part("slope", "focal")}</b>.`;
  }

  function box(row, kind, words) {
    const frame = `x="${row[0]}" y="${row[1]}" width="${(row[2] - row[0]).toFixed(1)}" height="${(row[3] - row[1]).toFixed(1)}"`;
    const text = words ? `<text x="${row[0] + 3}" y="${Math.max(row[1], 2) + 14}">${words}</text>` : "";
    return `<g class="box ${kind}"><rect class="halo" ${frame}/><rect ${frame}/>${text}</g>`;
  }

  function drawThresholds(root, state, tell) {
    root.data ??= JSON.parse(root.querySelector('script[type="application/json"]').textContent);
    const {truth, classes} = root.data;
    const found = detect(root.data, state.score, state.iou);
    const missed = truth.filter((_, m) => !found.seen[m]).map((row) => box(row, "missed"));
    const few = found.rows.length <= 30; // more names than that cover the picture and each other
    const boxes = found.rows.map((row, i) =>
      box(row, found.right[i] ? "hit" : "wrong", few ? `${classes[row[4]]} ${row[5].toFixed(2)}` : ""));
    mark(root, "boxes").innerHTML = missed.join("") + boxes.reverse().join(""); // the surest on top
    mark(root, "removed").setAttribute("d", found.removed.map((r) => `M${r[0]} ${r[1]}H${r[2]}V${r[3]}H${r[0]}Z`).join(""));
    const legend = root.querySelectorAll(".legend li");
    for (const [i, name] of [[3, "truth"], [4, "removed"]]) {
      show(mark(root, name), state[name]);
      show(legend[i], state[name]);
    }
    tell({score: state.score.toFixed(2), iou: state.iou === 1 ? "1 (none removed)" : state.iou.toFixed(2)});
    const kept = found.rows.length;
    return `${count(found.above)} candidates have a score of at least ${state.score}; NMS leaves ${kept}: <b>${found.hits} ` +
      `right, ${kept - found.hits} wrong</b>, and <b>${truth.length - found.hits}</b> of ${truth.length} objects missed. ` +
      `Precision ${kept ? percent(found.precision) : "undefined"}, recall ${percent(found.recall)}, ` +
      `F1 ${percent(found.f1)}, at IoU 0.5.`;
  }

  // ---- wiring ----------------------------------------------------------------------------------------------------------

  const DRAW = {loss: drawLoss, share: drawShare, thresholds: drawThresholds};

  function read(form) {
    const state = {};
    for (const input of form.querySelectorAll("input")) {
      if (input.type === "range") state[input.name] = Number(input.value);
      else if (input.type === "checkbox") state[input.name] = input.checked;
      else if (input.checked) state[input.name] = input.value;
    }
    return state;
  }

  function start(root) {
    const form = root.querySelector("form"), live = root.querySelector(".live");
    const tell = (texts) => { // beside each slider, and to a screen reader instead of its raw position
      for (const [name, text] of Object.entries(texts)) {
        const slider = form.querySelector(`[data-for="${name}"]`);
        slider.querySelector("output").textContent = text;
        slider.querySelector("input").setAttribute("aria-valuetext", text);
      }
    };
    const update = () => { live.innerHTML = DRAW[root.dataset.explorer](root, read(form), tell); };
    form.addEventListener("input", update);
    form.addEventListener("reset", () => setTimeout(update));
    form.addEventListener("submit", (event) => event.preventDefault());
    form.hidden = false;
    update();
  }

  if (typeof document !== "undefined") document.querySelectorAll("[data-explorer]").forEach(start);
  return {loss, slope, shares, suppress, judge, detect, short, percent, roundToTwo, iou};
})();
