
"use strict";
(() => {
  const root = document.documentElement;
  root.classList.add("scripted");
  const data = JSON.parse(document.getElementById("plot-data").textContent);
  const quiet = matchMedia("(prefers-reduced-motion: reduce)");

  // The table: a button in each head sorts by its column; what has no figure stays at the end.
  const all = document.getElementById("all");
  const heads = [...all.tHead.rows[0].cells];
  const valueOf = (row, index) => {
    const cell = row.cells[index];
    if (cell.dataset.v === undefined) return heads[index].classList.contains("text") ? cell.textContent : null;
    return heads[index].classList.contains("text") ? cell.dataset.v : Number(cell.dataset.v);
  };
  const order = (a, b) => (typeof a === "string" ? a.localeCompare(b, undefined, { numeric: true }) : a - b);
  const sortBy = (index) => {
    const down = heads[index].ariaSort === "ascending";
    const rows = [...all.tBodies[0].rows].map((row) => [valueOf(row, index), row]);
    rows.sort(([a], [b]) => {
      if (a === null || b === null) return (a === null) - (b === null);
      return down ? order(b, a) : order(a, b);
    });
    heads.forEach((head) => head.removeAttribute("aria-sort"));
    heads[index].setAttribute("aria-sort", down ? "descending" : "ascending");
    all.tBodies[0].append(...rows.map(([, row]) => row));
  };
  heads.forEach((head, index) => {
    const button = document.createElement("button");
    button.type = "button";
    button.append(head.firstChild);
    button.addEventListener("click", () => sortBy(index));
    head.prepend(button);
  });

  // Copying.
  const select = (node) => {
    const range = document.createRange();
    range.selectNodeContents(node);
    getSelection().removeAllRanges();
    getSelection().addRange(range);
  };
  document.querySelectorAll(".copyable").forEach((block) => {
    const button = block.querySelector("button");
    const code = block.querySelector("code");
    const say = (text) => {
      button.textContent = text;
      setTimeout(() => (button.textContent = "Copy"), 1600);
    };
    button.addEventListener("click", () => {
      const byHand = () => {
        select(code);
        say("Selected");
      };
      if (!navigator.clipboard) return byHand();
      return navigator.clipboard.writeText(code.textContent).then(() => say("Copied"), byHand);
    });
  });

  // The plot.
  const plot = document.querySelector(".plot");
  if (!plot) return;
  const svg = plot.querySelector("svg");
  const tip = plot.querySelector(".tip");
  const form = document.querySelector(".controls");
  const missing = document.getElementById("plot-missing");
  const shapes = { winner: "M0-9.5 9.5 0 0 9.5-9.5 0z", baseline: "M-6-6h12v12h-12z" };
  const rank = { winner: 3, baseline: 2, accepted: 1 };
  let marks = [];
  let shownMark = null;

  const make = (name, attributes, parent, text) => {
    const node = document.createElementNS("http://www.w3.org/2000/svg", name);
    for (const key in attributes) node.setAttribute(key, attributes[key]);
    if (text !== undefined) node.textContent = text;
    if (parent) parent.append(node);
    return node;
  };
  const written = (value, step) => {
    const places = step ? Math.max(0, Math.min(8, -Math.floor(Math.log10(step) + 1e-9))) : 0;
    const clear = Math.abs(value) < step * 1e-6 ? 0 : value;
    const text = clear.toLocaleString("en-GB", { minimumFractionDigits: places, maximumFractionDigits: step ? places : 8 });
    return text.replace("-", "−");
  };
  const round = (low, high, count) => {
    const raw = (high - low) / count;
    const power = 10 ** Math.floor(Math.log10(raw));
    const step = [1, 2, 2.5, 5, 10].find((m) => m * power >= raw * 0.999) * power;
    const ticks = [];
    for (let i = Math.ceil(low / step - 1e-9); i * step <= high + step * 1e-9; i++) ticks.push(i * step);
    return { ticks, step: step / power === 2.5 ? step / 10 : step };
  };
  const decades = (low, high, count) => {
    const ticks = [];
    for (let power = Math.floor(Math.log10(low)); 10 ** power <= high; power++)
      for (const m of [1, 2, 5]) ticks.push(m * 10 ** power);
    const inside = ticks.filter((tick) => tick >= low * 0.999 && tick <= high * 1.001);
    if (inside.length < 3) return round(low, high, count);
    const every = Math.ceil(inside.length / (count + 2));
    return { ticks: inside.filter((_, i) => i % every === 0), step: 0 };
  };
  const widened = (values, log, share) => {
    let low = Math.min(...values);
    let high = Math.max(...values);
    if (low === high) [low, high] = log ? [low / 1.5, high * 1.5] : [low - (Math.abs(low) * 0.1 || 1), high + (Math.abs(high) * 0.1 || 1)];
    if (log) {
      const pad = (high / low) ** share;
      return [low / pad, high * pad];
    }
    const pad = (high - low) * share;
    return [low >= 0 ? Math.max(0, low - pad) : low - pad, high + pad];
  };
  const scaled = ([low, high], log, from, to) => {
    const f = log ? Math.log : Number;
    return (value) => from + ((f(value) - f(low)) / (f(high) - f(low))) * (to - from);
  };
  const front = (points, better) => {
    const sorted = [...points].sort((a, b) => (better.x === "low" ? a.x - b.x : b.x - a.x) || (better.y === "low" ? a.y - b.y : b.y - a.y));
    const kept = [];
    for (const point of sorted) {
      const last = kept[kept.length - 1];
      if (!last || (better.y === "low" ? point.y < last.y : point.y > last.y)) kept.push(point);
    }
    return kept;
  };

  const draw = () => {
    const focused = document.activeElement && document.activeElement.dataset.n;
    hide();
    svg.replaceChildren();
    marks = [];
    const kx = form.elements.x.value;
    const ky = form.elements.y.value;
    const log = form.elements.log.checked;
    const axes = { x: data.x[kx], y: data.y[ky] };
    const points = data.points
      .filter((p) => p[kx] !== null && p[ky] !== null && (!log || p[kx] > 0))
      .map((p) => ({ ...p, x: p[kx], y: p[ky][0], low: p[ky][1], high: p[ky][2] }));
    const without = data.points.length - points.length;
    missing.textContent = without ? `${without} of ${data.points.length} timed candidates have no such figure and are in the table only.` : "";
    const box = svg.getBoundingClientRect();
    const [width, height] = [Math.max(box.width, 240), Math.max(box.height, 200)];
    svg.setAttribute("viewBox", `0 0 ${width} ${height}`);
    if (!points.length) {
      make("text", { x: width / 2, y: height / 2, "text-anchor": "middle" }, svg, "No candidate has both figures.");
      return;
    }
    plot.classList.toggle("dense", points.length > 24);
    const frame = { left: 58, right: width - 14, top: 34, bottom: height - 46 };
    const spanX = widened(points.map((p) => p.x), log, 0.09);
    const ends = points.flatMap((p) => [p.low ?? p.y, p.high ?? p.y]);
    const limitY = data.limits[ky];
    const tall = Math.max(...ends) - Math.min(...ends);
    if (limitY !== undefined && limitY > Math.min(...ends) - tall && limitY < Math.max(...ends) + tall) ends.push(limitY);
    const spanY = widened(ends, false, 0.07);
    const x = scaled(spanX, log, frame.left, frame.right);
    const flip = axes.y.better === "low";
    const y = scaled(spanY, false, flip ? frame.top : frame.bottom, flip ? frame.bottom : frame.top);

    drawAxes(axes, { x, y, spanX, spanY, frame, log });
    drawLimits(kx, ky, { x, y, spanX, spanY, frame });
    const levels = drawFront(points, axes, { x, y, frame });
    const layer = make("g", {}, svg);
    points.sort((a, b) => (rank[a.status] || 0) - (rank[b.status] || 0));
    points.forEach((point) => marks.push(drawMark(point, x, y, layer, axes)));
    drawNames(points, x, y, frame, levels);
    marks.sort((a, b) => a.cx - b.cx || a.cy - b.cy);
    const stop = marks.find((m) => String(m.point.n) === focused) || marks.find((m) => m.point.status === "winner") || marks[0];
    stop.node.setAttribute("tabindex", "0");
    if (focused !== undefined) stop.node.focus();
  };

  const drawAxes = (axes, { x, y, spanX, spanY, frame, log }) => {
    const across = Math.max(3, Math.floor((frame.right - frame.left) / 90));
    const tx = log ? decades(...spanX, across) : round(...spanX, across);
    const ty = round(...spanY, 6);
    for (const tick of ty.ticks) {
      make("line", { class: "grid", x1: frame.left, x2: frame.right, y1: y(tick), y2: y(tick) }, svg);
      make("text", { x: frame.left - 8, y: y(tick) + 4, "text-anchor": "end" }, svg, written(tick, ty.step));
    }
    make("line", { class: "grid", x1: frame.left, x2: frame.right, y1: frame.bottom, y2: frame.bottom }, svg);
    for (const tick of tx.ticks) {
      make("line", { class: "grid", x1: x(tick), x2: x(tick), y1: frame.bottom, y2: frame.bottom + 5 }, svg);
      make("text", { x: x(tick), y: frame.bottom + 19, "text-anchor": "middle" }, svg, written(tick, tx.step));
    }
    const low = axes.x.better === "low";
    const label = low ? `← ${axes.x.label}` : `${axes.x.label} →`;
    make("text", { class: "title", x: low ? frame.left : frame.right, y: frame.bottom + 40, "text-anchor": low ? "start" : "end" }, svg, label);
    make("text", { class: "title", x: 0, y: 14 }, svg, `↑ ${axes.y.label}`);
  };

  const drawLimits = (kx, ky, { x, y, spanX, spanY, frame }) => {
    const [lx, ly] = [data.limits[kx], data.limits[ky]];
    if (ly !== undefined && ly > spanY[0] && ly < spanY[1]) {
      make("path", { class: "limit", d: `M${frame.left} ${y(ly)}H${frame.right}` }, svg);
      make("text", { class: "limit-name", x: frame.right, y: y(ly) - 6, "text-anchor": "end" }, svg, "limit");
    }
    if (lx !== undefined && lx > spanX[0] && lx < spanX[1]) {
      make("path", { class: "limit", d: `M${x(lx)} ${frame.top}V${frame.bottom}` }, svg);
      make("text", { class: "limit-name", x: x(lx) + 6, y: frame.top + 10 }, svg, "limit");
    }
  };

  const drawFront = (points, axes, { x, y, frame }) => {
    const best = front(points, { x: axes.x.better, y: axes.y.better });
    const steps = best.map((p, i) => (i ? `H${x(p.x)}V${y(p.y)}` : `M${x(p.x)} ${y(p.y)}`));
    const end = axes.x.better === "low" ? frame.right : frame.left;
    make("path", { class: "front", d: `${steps.join("")}H${end}` }, svg);
    return best.map((p) => y(p.y));
  };

  const drawMark = (point, x, y, layer, axes) => {
    const [cx, cy] = [x(point.x), y(point.y)];
    const said = [`${point.name}, number ${point.n}`, ...point.tip.map(([name, text]) => `${name} ${text}`), point.verdict].join("; ");
    const node = make("g", { class: `mark ${point.status} ${data.engines > 1 ? `e${point.engine}` : ""}`, transform: `translate(${cx} ${cy})`, tabindex: -1, role: "button", "aria-label": said, "data-n": point.n }, layer);
    if (point.low !== null && point.low !== point.high) {
      const [a, b] = [y(point.low) - cy, y(point.high) - cy];
      make("path", { class: "bar", d: `M0 ${a}V${b}M-3.5 ${a}h7M-3.5 ${b}h7` }, node);
    }
    if (shapes[point.status]) make("path", { class: "shape", d: shapes[point.status] }, node);
    else make("circle", { class: "shape", r: point.status === "accepted" ? 5.5 : 4.5 }, node);
    const mark = { node, point, cx, cy };
    node.addEventListener("focus", () => show(mark));
    node.addEventListener("blur", hide);
    node.addEventListener("keydown", (event) => onKey(event, mark));
    return mark;
  };

  const drawNames = (points, x, y, frame, levels) => {
    const named = [points.find((p) => p.status === "winner"), points.filter((p) => p.status === "baseline").sort((a, b) => a.n - b.n)[0]];
    for (const point of named) {
      if (!point) continue;
      const text = point.status === "baseline" ? "as given" : point.name;
      const short = text.length > 32 ? `${text.slice(0, 31)}…` : text;
      const node = make("text", { class: `name ${point.status}` }, svg, short);
      const long = node.getComputedTextLength();
      const places = [[13, -9], [-13 - long, -9], [13, 20], [-13 - long, 20]].map(([dx, dy]) => {
        const [left, base] = [x(point.x) + dx, y(point.y) + dy];
        const covered = marks.filter((m) => m.cx > left - 8 && m.cx < left + long + 8 && m.cy > base - 18 && m.cy < base + 10).length;
        const crossed = levels.some((level) => level > base - 13 && level < base + 5) ? 0.5 : 0;
        return { left, base, cost: covered + crossed + (left < frame.left || left + long > frame.right ? 100 : 0) };
      });
      const best = places.reduce((a, b) => (b.cost < a.cost ? b : a));
      node.setAttribute("x", best.left);
      node.setAttribute("y", best.base);
    }
  };

  const show = (mark) => {
    if (shownMark === mark) return;
    hide();
    shownMark = mark;
    mark.node.classList.add("on");
    const part = (name, text, parent) => {
      const node = document.createElement(name);
      node.textContent = text;
      parent.append(node);
      return node;
    };
    tip.replaceChildren();
    part("strong", mark.point.name, tip);
    const list = part("dl", "", tip);
    part("dt", "number", list);
    part("dd", mark.point.n, list);
    for (const [name, text] of mark.point.tip) {
      part("dt", name, list);
      part("dd", text, list);
    }
    part("p", mark.point.verdict, tip);
    tip.hidden = false;
    const [wide, high] = [tip.offsetWidth, tip.offsetHeight];
    const room = plot.clientWidth;
    const beside = mark.cx + 18 + wide <= room ? mark.cx + 18 : mark.cx - 18 - wide;
    const left = Math.max(0, Math.min(room - wide, beside));
    const covers = left < mark.cx + 12 && left + wide > mark.cx - 12;
    const top = covers ? mark.cy + 22 : Math.max(-20, mark.cy - high / 2);
    tip.style.transform = `translate(${left}px, ${top}px)`;
  };
  const hide = () => {
    if (!shownMark) return;
    shownMark.node.classList.remove("on");
    shownMark = null;
    tip.hidden = true;
  };
  const goTo = (mark) => {
    const row = document.getElementById(`c${mark.point.n}`);
    document.querySelectorAll("tr.shown").forEach((other) => other.classList.remove("shown"));
    row.classList.add("shown");
    row.scrollIntoView({ block: "center", inline: "nearest", behavior: quiet.matches ? "auto" : "smooth" });
  };
  const onKey = (event, mark) => {
    const step = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[event.key];
    const index = marks.indexOf(mark);
    let next = step && marks[index + step];
    if (event.key === "Home") next = marks[0];
    if (event.key === "End") next = marks[marks.length - 1];
    if (event.key === "Escape") hide();
    if (event.key === "Enter" || event.key === " ") goTo(mark);
    if (step || ["Home", "End", "Enter", " "].includes(event.key)) event.preventDefault();
    if (!next) return;
    mark.node.setAttribute("tabindex", "-1");
    next.node.setAttribute("tabindex", "0");
    next.node.focus();
  };
  const nearest = (event) => {
    const box = svg.getBoundingClientRect();
    const [px, py] = [event.clientX - box.left, event.clientY - box.top];
    const near = marks.map((mark) => [Math.hypot(mark.cx - px, mark.cy - py), mark]).sort((a, b) => a[0] - b[0])[0];
    return near && near[0] < 26 ? near[1] : null;
  };
  svg.addEventListener("pointermove", (event) => {
    const mark = nearest(event);
    if (mark) show(mark);
    else hide();
  });
  svg.addEventListener("pointerleave", hide);
  svg.addEventListener("click", (event) => {
    const mark = nearest(event);
    if (mark && event.pointerType !== "touch") goTo(mark);
    else if (mark) show(mark);
  });
  all.tBodies[0].addEventListener("pointerover", (event) => {
    const row = event.target.closest("tr");
    marks.forEach((mark) => mark.node.classList.toggle("on", `c${mark.point.n}` === row.id));
  });
  all.tBodies[0].addEventListener("pointerleave", () => marks.forEach((mark) => mark.node.classList.remove("on")));

  const spread = () => {
    const values = data.points.map((p) => p[form.elements.x.value]).filter((value) => value > 0);
    form.elements.log.checked = values.length > 1 && Math.max(...values) / Math.min(...values) > 8;
  };
  form.addEventListener("change", (event) => {
    if (event.target.name === "x") spread();
    draw();
  });
  spread();
  new ResizeObserver(draw).observe(svg);
  draw();
})();
