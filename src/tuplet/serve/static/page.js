"use strict";
const $ = (id) => document.getElementById(id);
const STEP = 48, MOST = 500;
const picturePath = (id) => `/thumbnails/${id}`;

// Asking the server.
let signingIn = null;
function signIn() {
  signingIn ??= new Promise((done) => {
    $("gate").showModal();
    $("gate").oncancel = (event) => event.preventDefault();
    $("gate-form").onsubmit = async (event) => {
      event.preventDefault();
      $("gate-say").hidden = true;
      const token = $("token").value.trim();
      let problem = /[^!-~]/.test(token) ? "the token has spaces or unusual characters; want it as the server has it" : "the server cannot be reached";
      try {
        const headers = { authorization: `Bearer ${token}` };
        const answer = await fetch("/login", { method: "POST", headers });
        problem = answer.ok ? "" : (await answer.json()).detail;
      } catch { /* said below */ }
      if (problem) { $("gate-say").textContent = problem; $("gate-say").hidden = false; $("token").select(); return; }
      $("token").value = "";
      $("gate").close();
      signingIn = null;
      done();
    };
  });
  return signingIn;
}
async function ask(path, options = {}, tries = 4) {
  let answer;
  try { answer = await fetch(path, options); } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Error("the server cannot be reached; want it started again: tuplet serve");
  }
  if (answer.status === 401) { await signIn(); return ask(path, options, tries); }
  if (answer.status === 503 && answer.headers.has("retry-after") && tries > 1) {
    await new Promise((later) => setTimeout(later, 1000 * Number(answer.headers.get("retry-after"))));
    options.signal?.throwIfAborted();
    return ask(path, options, tries - 1);
  }
  const body = await answer.json().catch(() => ({ detail: `the server, or what stands before it, answered ${answer.status}` }));
  if (!answer.ok) throw new Error(body.detail);
  return body;
}

// How names are shown. What cannot be seen and would turn round or move what stands beside it is spelt out, as on the
// command line, but for the spaces and joiners that ordinary names have; a name within a sentence keeps its direction.
const UNSEEN = /(?![ \u00a0\u202f\u3000\u200c\u200d])[\p{C}\p{Z}]/gu;
const hex = (char) => char.codePointAt(0).toString(16);
const spelt = (char) => char < "\u0100" ? `\\x${hex(char).padStart(2, "0")}` : char.length > 1 ? `\\U${hex(char).padStart(8, "0")}` : `\\u${hex(char)}`;
const plain = (name) => name.replace(UNSEEN, spelt);
const apart = (name) => `\u2066${plain(name)}\u2069`;
function short(name, most) {
  const chars = [...plain(name)];
  return chars.length <= most ? chars.join("") : `${chars.slice(0, Math.ceil(most * .6)).join("").trimEnd()}…${chars.slice(Math.ceil(most * .6) + 1 - most).join("").trimStart()}`;
}
const many = (number) => number.toLocaleString("en");
const counted = (number) => `${many(number)} picture${number === 1 ? "" : "s"}`;
function option(label, text) {
  return Object.assign(new Option(text, label), { title: plain(label) });
}

// What is looked at: {id} or {upload}, or neither; {label, top}. It lies in the browser's history.
const uploads = new Map();
const answers = new Map();
let view = null, asking = null;
const viewOfAddress = () => {
  const given = new URLSearchParams(location.search), top = Number(given.get("top"));
  return { id: given.get("id") ?? "", upload: history.state?.upload ?? 0, label: given.get("label") ?? "", top: top >= 1 && top <= MOST ? Math.floor(top) : STEP };
};
function addressOf(one) {
  const parts = new URLSearchParams();
  if (one.id) parts.set("id", one.id);
  if (one.label) parts.set("label", one.label);
  if (one.top !== STEP) parts.set("top", one.top);
  return parts.size ? `/?${parts}` : "/";
}
function go(to, { replace = false } = {}) {
  history.replaceState({ ...history.state, scroll: scrollY }, "");
  history[replace ? "replaceState" : "pushState"]({ upload: to.upload, scroll: replace ? scrollY : 0 }, "", addressOf(to));
  show(to, { scroll: replace ? null : 0, focus: !replace });
}
async function show(to, { scroll = null, focus = false } = {}) {
  asking?.abort();
  asking = new AbortController();
  view = to;
  $("label").value = to.label;
  if ($("label").value !== to.label) { $("label").add(option(to.label, short(to.label, 60))); $("label").value = to.label; }
  $("found").setAttribute("aria-busy", "true");
  const { signal } = asking, key = JSON.stringify(to);
  try {
    const answer = answers.get(key) ?? await answerTo(to, signal);
    if (signal.aborted) return;
    answers.delete(key);
    answers.set(key, answer);
    if (answers.size > 60) answers.delete(answers.keys().next().value);
    tell("");
    render(to, answer);
  } catch (error) {
    if (error.name === "AbortError" || signal.aborted) return;
    render(to, null);
    tell(error.message);
  }
  if (focus) $("title").focus({ preventScroll: true });
  if (scroll !== null) scrollTo(0, scroll);
}
function answerTo(to, signal) {
  const more = new URLSearchParams({ top: to.top });
  if (to.label) more.set("label", to.label);
  if (to.upload) {
    const sent = uploads.get(to.upload);
    if (!sent) throw new Error("the picture that was looked up is not here any more; drop or pick it again");
    const type = sent.file.type.startsWith("image/") ? sent.file.type : "application/octet-stream";
    return ask(`/search?${more}`, { method: "POST", body: sent.file, headers: { "content-type": type }, signal });
  }
  if (to.id) { more.set("id", to.id); return ask(`/search?${more}`, { signal }); }
  return ask(`/pictures?${more}`, { signal });
}
function tell(problem, calm = false) {
  $("say").textContent = problem;
  $("say").classList.toggle("calm", calm);
  $("say").hidden = !problem;
}

// Showing it.
const element = (name, className, text = "") => Object.assign(document.createElement(name), { className, textContent: text });
function said({ answer, label, probability }) {
  const as = label ? `: ${apart(short(label, 40))}` : "";
  return `${answer[0].toUpperCase()}${answer.slice(1)}${as}${probability === null ? "" : `, probability ${Math.round(100 * probability)} %`}`;
}
function render(to, answer) {
  const looked = Boolean(to.id || to.upload), found = answer?.found ?? answer?.pictures ?? [];
  const query = answer?.query, sent = uploads.get(to.upload), name = query?.name ?? sent?.name ?? "this picture";
  $("asked").className = looked ? "asked" : "";
  $("asked-picture").hidden = !looked || (!query && !sent);
  $("asked-picture").onerror = () => { $("asked-picture").onerror = null; if (query) $("asked-picture").src = picturePath(query.id); else $("asked-picture").hidden = true; };
  if (looked && sent) $("asked-picture").src = sent.url;
  else if (query) $("asked-picture").src = `/images/${query.id}`;
  $("title").textContent = looked ? `Pictures like ${query?.label ? `${apart(short(query.label, 24))}, ` : ""}${apart(short(name, 40))}` : "Search by picture";
  $("title").title = looked ? [query?.label, name].filter(Boolean).map(plain).join("\n") : "";
  const only = to.label ? ` with the label “${apart(short(to.label, 60))}”` : "";
  $("about").className = looked ? "soft" : "lead";
  $("about").textContent = looked ? (query ? plain(query.path) : answer ? "A picture that was sent; the server does not keep it." : "") : `Drop, paste or pick a picture to find what looks like it${found.length ? `, or begin with one of these${only}` : ""}.`;
  if (answer?.verdict) $("about").prepend(element("b", "", said(answer.verdict)), element("br", ""));
  $("acts").hidden = !query;
  if (query) $("open").href = `/images/${query.id}`;
  document.title = `${looked ? `Like ${plain(name)}` : "Search"} · tuplet`;
  $("found").replaceChildren(...found.map((one) => card(one, to)));
  $("found").setAttribute("aria-busy", "false");
  $("more").hidden = found.length < to.top || to.top >= MOST;
  if (answer && !found.length) tell(`There is no ${looked ? "other " : ""}picture${only}.`, true);
  $("live").textContent = answer ? `${counted(found.length)}${only}` : "";
  chart.mark(query?.id ?? to.id, found.map((one) => one.id), to.label);
}
function card(one, from) {
  const to = { id: one.id, upload: 0, label: from.label, top: STEP };
  const item = document.createElement("li"), link = element("a", "shot"), row = element("span", "row");
  const distance = one.distance?.toFixed(3);
  link.href = addressOf(to);
  link.onclick = (event) => follow(event, to);
  link.title = plain(one.path);
  link.setAttribute("aria-label", [one.label && apart(one.label), apart(one.name), distance && `distance ${distance}`, one.exact_copy && "exact copy"].filter(Boolean).join(", "));
  link.append(Object.assign(document.createElement("img"), { src: picturePath(one.id), alt: "", loading: "lazy", width: 256, height: 256 }));
  const name = element("span", "name", plain(one.name));
  row.append(one.label ? Object.assign(element("b", "", plain(one.label)), { title: plain(one.label) }) : name);
  if (distance) row.append(element("span", "number", distance));
  link.append(row);
  if (one.label) link.append(name);
  if (one.exact_copy) link.append(element("span", "mark", "exact copy"));
  link.onpointerenter = link.onfocus = () => chart.point(one.id);
  link.onpointerleave = link.onblur = () => chart.point("");
  item.append(link);
  return item;
}
function follow(event, to) {
  if (event.metaKey || event.ctrlKey || event.shiftKey || event.button) return;
  event.preventDefault();
  switchTo("pictures");
  go(to);
}

// Pictures that come in.
let numUploads = Date.now();
function send(file) {
  if (!file) return;
  uploads.set(++numUploads, { file, name: file.name || "a pasted picture", url: URL.createObjectURL(file) });
  if (uploads.size > 20) {
    const [oldest, { url }] = uploads.entries().next().value;
    URL.revokeObjectURL(url);
    uploads.delete(oldest);
  }
  switchTo("pictures");
  go({ id: "", upload: numUploads, label: view?.label ?? "", top: STEP });
}
const pictureIn = (transfer) => [...(transfer?.files ?? [])].find((one) => one.type.startsWith("image/")) ?? transfer?.files?.[0];
$("pick").onclick = () => $("file").click();
$("file").onchange = () => { send($("file").files[0]); $("file").value = ""; };
addEventListener("paste", (event) => { if (event.target !== $("token")) send(pictureIn(event.clipboardData)); });
addEventListener("dragover", (event) => { if (event.dataTransfer.types.includes("Files")) { event.preventDefault(); $("drop").hidden = false; } });
addEventListener("dragleave", (event) => { if (!event.relatedTarget) $("drop").hidden = true; });
addEventListener("drop", (event) => { event.preventDefault(); $("drop").hidden = true; send(pictureIn(event.dataTransfer)); });

// The map: points from 0 to 1; `camera` is the place in the middle, and pixels to a unit.
const chart = (() => {
  const canvas = $("map"), pen = canvas.getContext("2d"), pictures = new Map(), pointers = new Map();
  let map = null, number = new Map(), marked = new Set(), asked = "", only = "", pointed = -1, hovered = -1;
  let width = 1, height = 1, camera = { x: .5, y: .5, zoom: 1 }, due = false, moved = 0, colors = {};
  const base = () => Math.max(Math.min((width - 64) / (map?.wide || 1), (height - 48) / (map?.tall || 1)), 50);
  const scale = () => base() * camera.zoom;
  const screen = (i) => [width / 2 + (map.x[i] - camera.x) * scale(), height / 2 + (map.y[i] - camera.y) * scale()];
  const draw = () => { if (!due) { due = true; requestAnimationFrame(paint); } };
  const style = () => {
    const of = getComputedStyle(document.documentElement), get = (name) => of.getPropertyValue(name).trim();
    colors = { ink: get("--ink"), card: get("--card"), soft: get("--soft"), accent: get("--accent"), series: [...Array(8).keys()].map((i) => get(`--series-${i + 1}`)) };
    draw();
  };
  function thumb(i) {
    const id = map.ids[i];
    if (!pictures.has(id)) {
      if (pictures.size > 400) pictures.delete(pictures.keys().next().value);
      const image = new Image();
      image.onload = draw;
      image.src = picturePath(id);
      pictures.set(id, image);
    }
    const image = pictures.get(id);
    return image.complete && image.naturalWidth ? image : null;
  }
  function dot(i, x, y, size, color) {
    pen.fillStyle = color;
    pen.beginPath();
    pen.arc(x, y, size, 0, 7);
    pen.fill();
  }
  function ring(i, side, color, line) {
    const [x, y] = screen(i);
    pen.strokeStyle = color;
    pen.lineWidth = line;
    if (side) pen.strokeRect(x - side / 2 - 1, y - side / 2 - 1, side + 2, side + 2);
    else { pen.beginPath(); pen.arc(x, y, 7, 0, 7); pen.stroke(); }
  }
  function paint() {
    due = false;
    const ratio = devicePixelRatio || 1;
    pen.setTransform(ratio, 0, 0, ratio, 0, 0);
    pen.clearRect(0, 0, width, height);
    if (!map) return;
    const seen = [];
    for (let i = 0; i < map.ids.length; i++) {
      const [x, y] = screen(i);
      if (x > -40 && y > -40 && x < width + 40 && y < height + 40) seen.push([i, x, y]);
    }
    const side = seen.length <= 90 && camera.zoom > 1.5 ? Math.min(88, Math.sqrt(width * height / Math.max(seen.length, 1)) * .7) : 0;
    const wanted = only && map.labels.includes(only) ? map.labels.indexOf(only) : only ? -3 : -2; // -1: without a label
    for (const [i, x, y] of seen) {
      const label = map.label_of[i], image = side && thumb(i);
      pen.globalAlpha = wanted === -2 || label === wanted ? 1 : .16;
      if (image) {
        const fit = side / Math.max(image.naturalWidth, image.naturalHeight);
        pen.drawImage(image, x - image.naturalWidth * fit / 2, y - image.naturalHeight * fit / 2, image.naturalWidth * fit, image.naturalHeight * fit);
      } else dot(i, x, y, map.ids.length > 800 ? 2.6 : 3.6, label < 0 ? colors.soft : colors.series[label % 8]);
    }
    pen.globalAlpha = 1;
    for (const [i] of seen) if (marked.has(map.ids[i])) ring(i, side, colors.ink, 1.6);
    const here = number.get(asked);
    if (here !== undefined) { ring(here, side, colors.card, 6); ring(here, side, colors.accent, 3.5); }
    if (pointed >= 0) { ring(pointed, side, colors.card, 6); ring(pointed, side, colors.ink, 3); }
    if (!side) names();
  }
  function names() {
    const taken = [];
    pen.font = `600 12px ${getComputedStyle(document.body).fontFamily}`;
    pen.textAlign = "center";
    pen.textBaseline = "middle";
    pen.lineJoin = "round";
    for (const [label, size, px, py] of map.centres) {
      if (only && map.labels[label] !== only) continue;
      const x = width / 2 + (px - camera.x) * scale(), y = height / 2 + (py - camera.y) * scale() - (size < 3 ? 14 : 0);
      const text = short(map.labels[label], 24), half = pen.measureText(text).width / 2;
      if (x < half || x > width - half || y < 8 || y > height - 8) continue;
      if (taken.length >= 30 || taken.some(([a, b, c]) => Math.abs(a - x) < c + half + 4 && Math.abs(b - y) < 15)) continue;
      taken.push([x, y, half]);
      pen.strokeStyle = colors.card;
      pen.lineWidth = 4;
      pen.strokeText(text, x, y);
      pen.fillStyle = colors.ink;
      pen.fillText(text, x, y);
    }
  }
  const middle = (values) => values.sort((a, b) => a - b)[Math.floor(values.length / 2)];
  function centres() {
    const groups = map.labels.map(() => [[], []]);
    map.label_of.forEach((label, i) => { if (label >= 0) { groups[label][0].push(map.x[i]); groups[label][1].push(map.y[i]); } });
    return groups.map(([x, y], label) => [label, x.length, middle(x), middle(y)]).sort((a, b) => b[1] - a[1]);
  }
  function nearest(x, y, within) {
    let best = -1, least = within ** 2;
    for (let i = 0; i < map.ids.length; i++) {
      const [a, b] = screen(i), far = (a - x) ** 2 + (b - y) ** 2;
      if (far < least) { least = far; best = i; }
    }
    return best;
  }
  function tip(i) {
    hovered = pointed = i;
    canvas.classList.toggle("over", i >= 0);
    $("tip").hidden = i < 0;
    draw();
    if (i < 0) return;
    const [x, y] = screen(i), to = { id: map.ids[i], upload: 0, label: view?.label ?? "", top: STEP };
    const label = map.labels[map.label_of[i]] ?? "";
    $("tip-picture").src = picturePath(map.ids[i]);
    $("tip-label").textContent = plain(label);
    $("tip").href = addressOf(to);
    $("tip").onclick = (event) => { tip(-1); follow(event, to); };
    $("tip").setAttribute("aria-label", `${label ? apart(label) : "a picture"}: find what looks like it`);
    const tall = $("tip").offsetHeight, wide = $("tip").offsetWidth;
    $("tip").style.left = `${Math.min(Math.max(x + (x + wide + 16 > width ? -wide - 14 : 14), 4), Math.max(width - wide - 4, 4))}px`;
    $("tip").style.top = `${Math.min(Math.max(y - tall / 2, 4), Math.max(height - tall - 4, 4))}px`;
    $("live").textContent = plain(label);
  }
  function zoom(by, x = width / 2, y = height / 2) {
    const before = scale();
    camera.zoom = Math.min(Math.max(camera.zoom * by, .6), 60);
    camera.x += (x - width / 2) * (1 / before - 1 / scale());
    camera.y += (y - height / 2) * (1 / before - 1 / scale());
    if (map) tip(-1);
    draw();
  }
  function pan(dx, dy) {
    camera.x = Math.min(Math.max(camera.x - dx / scale(), -.1), 1.1);
    camera.y = Math.min(Math.max(camera.y - dy / scale(), -.1), 1.1);
    draw();
  }
  const at = (event) => { const box = canvas.getBoundingClientRect(); return [event.clientX - box.left, event.clientY - box.top]; };
  canvas.onpointerdown = (event) => { canvas.setPointerCapture(event.pointerId); pointers.set(event.pointerId, at(event)); if (pointers.size === 1) moved = 0; };
  canvas.onpointermove = (event) => {
    if (!map) return;
    const now = at(event), before = pointers.get(event.pointerId);
    if (!before) { if (event.pointerType !== "touch") tip(nearest(...now, 14)); return; }
    pointers.set(event.pointerId, now);
    moved += Math.hypot(now[0] - before[0], now[1] - before[1]);
    if (pointers.size === 2) {
      const [, other] = [...pointers].find(([id]) => id !== event.pointerId);
      const gap = (point) => Math.max(Math.hypot(point[0] - other[0], point[1] - other[1]), 10);
      zoom(gap(now) / gap(before), (now[0] + other[0]) / 2, (now[1] + other[1]) / 2);
      pan((now[0] - before[0]) / 2, (now[1] - before[1]) / 2);
    } else if (pointers.size === 1 && moved > 4) { if (hovered >= 0) tip(-1); pan(now[0] - before[0], now[1] - before[1]); }
  };
  canvas.onpointerup = canvas.onpointercancel = (event) => {
    pointers.delete(event.pointerId);
    if (!map || moved > 4 || event.type === "pointercancel" || pointers.size) return;
    const i = nearest(...at(event), event.pointerType === "touch" ? 24 : 14);
    if (event.pointerType === "touch" || i < 0) tip(i);
    else { tip(-1); switchTo("pictures"); go({ id: map.ids[i], upload: 0, label: view.label, top: STEP }); }
  };
  $("land").onpointerleave = (event) => { if (map && event.pointerType !== "touch") tip(-1); };
  canvas.addEventListener("wheel", (event) => { event.preventDefault(); zoom(Math.exp(-event.deltaY * (event.deltaMode ? .05 : .0018)), ...at(event)); }, { passive: false });
  canvas.ondblclick = (event) => zoom(2, ...at(event));
  canvas.onkeydown = (event) => {
    const ways = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
    if (!map || event.metaKey || event.ctrlKey || event.altKey) return;
    if (ways[event.key]) step(...ways[event.key]);
    else if (event.key === "+" || event.key === "=") zoom(1.5);
    else if (event.key === "-") zoom(1 / 1.5);
    else if (event.key === "0") whole();
    else if (event.key === "Escape") tip(-1);
    else if (event.key === "Enter" && hovered >= 0) $("tip").click();
    else return;
    event.preventDefault();
  };
  function step(dx, dy) {
    const from = hovered >= 0 ? screen(hovered) : [width / 2, height / 2];
    let best = -1, least = Infinity;
    for (let i = 0; i < map.ids.length; i++) {
      const [x, y] = screen(i), ahead = (x - from[0]) * dx + (y - from[1]) * dy, aside = Math.abs((x - from[0]) * dy - (y - from[1]) * dx);
      if (i !== hovered && ahead > .5 && ahead + 2 * aside < least) { least = ahead + 2 * aside; best = i; }
    }
    if (best < 0) return;
    const [x, y] = screen(best), edge = 40;
    pan(x < edge ? edge - x : x > width - edge ? width - edge - x : 0, y < edge ? edge - y : y > height - edge ? height - edge - y : 0);
    tip(best);
  }
  function whole() { camera = { x: .5, y: .5, zoom: 1 }; if (map) tip(-1); draw(); }
  function fitted(drawn) {
    const span = (values) => values.reduce((most, one) => Math.max(most, one), 0) - values.reduce((least, one) => Math.min(least, one), 1);
    let [wide, tall] = [span(drawn.x), span(drawn.y)];
    if ((wide > tall) !== (width > height)) { // the axes mean nothing
      [drawn.x, drawn.y] = [drawn.y, drawn.x];
      [wide, tall] = [tall, wide];
    }
    return { ...drawn, wide: Math.max(wide, .01), tall: Math.max(tall, .01) };
  }
  async function load(again = 1000) {
    let drawn;
    try { drawn = await ask("/map"); } catch (error) { $("wait").textContent = `There is no map: ${error.message}`; return; }
    if (!drawn.ready) {
      if (drawn.problem) $("wait").textContent = `There is no map: ${drawn.problem}`;
      setTimeout(() => load(Math.min(again * 1.3, 8000)), again);
      return;
    }
    map = fitted(drawn);
    map.centres = centres();
    number = new Map(map.ids.map((id, i) => [id, i]));
    if (map.total) $("wait").hidden = true;
    else $("wait").textContent = "There is no picture to draw.";
    const part = map.ids.length < map.total ? `${many(map.ids.length)} of ` : map.total > 1 ? "All " : "";
    $("hint").textContent = `${part}${counted(map.total)}${map.total > 1 ? "; near means similar. Drag and zoom: they appear when you are close" : ""}.`;
    draw();
  }
  new ResizeObserver(() => {
    const box = $("land").getBoundingClientRect();
    if (!box.width) return;
    [width, height] = [$("land").clientWidth, $("land").clientHeight];
    const ratio = devicePixelRatio || 1;
    canvas.width = width * ratio;
    canvas.height = height * ratio;
    draw();
  }).observe($("land"));
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", style);
  $("zoom-in").onclick = () => zoom(1.6);
  $("zoom-out").onclick = () => zoom(1 / 1.6);
  $("whole").onclick = whole;
  style();
  return {
    load,
    mark(id, found, label) { asked = id; marked = new Set(id || uploads.has(view?.upload) ? found.slice(0, 24) : []); only = label; draw(); },
    point(id) { pointed = number.get(id) ?? -1; draw(); },
  };
})();

// The rest of the page.
function switchTo(name) {
  $("frame").dataset.view = name;
  $("show-pictures").setAttribute("aria-pressed", String(name === "pictures"));
  $("show-map").setAttribute("aria-pressed", String(name === "map"));
}
$("show-pictures").onclick = () => switchTo("pictures");
$("show-map").onclick = () => switchTo("map");
$("home").onclick = (event) => follow(event, { id: "", upload: 0, label: "", top: STEP });
$("label").onchange = () => go({ ...view, label: $("label").value, top: STEP });
$("more").onclick = () => go({ ...view, top: Math.min(view.top + STEP, MOST) }, { replace: true });
history.scrollRestoration = "manual";
addEventListener("popstate", (event) => show(viewOfAddress(), { scroll: event.state?.scroll ?? 0 }));
(async () => {
  try {
    const known = await ask("/labels");
    $("size").textContent = counted(known.pictures);
    $("label").replaceChildren(new Option("all labels", ""), ...known.labels.map((one) => option(one.label, `\u2066${short(one.label, 60)}\u2069 (${many(one.pictures)})`)));
    const left = known.num_labels - known.labels.length;
    if (left) $("label").add(Object.assign(new Option(`… and ${many(left)} rarer ones`), { disabled: true }));
    $("label").parentElement.hidden = known.num_labels === 0;
  } catch (error) { tell(error.message); }
  await show(viewOfAddress(), { scroll: history.state?.scroll ?? 0 });
  const given = new URLSearchParams(location.search), known = ["id", "label", "top"];
  const odd = [...new Set(given.keys())].filter((name) => !known.includes(name) || given.getAll(name).length > 1);
  if (given.has("top") && String(view.top) !== given.get("top")) odd.push(`top=${given.get("top")}`);
  if (odd.length && $("say").hidden) tell(`The address has ${odd.map(plain).join(", ")}, which this page does not use; want id, label and top (1 to ${MOST}), each once.`, true);
  chart.load();
})();
