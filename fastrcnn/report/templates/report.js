// The interactive parts of the report: counts at a score threshold, the confusion matrix and the filter of the gallery.
const data = JSON.parse(document.getElementById("data").textContent);
const steps = data.thresholds.length, MOST = 25;
const sum = values => values.reduce((a, b) => a + b, 0);

// Convert [bin, count, bin, count, ...] to the counts at or above each threshold.
function above(sparse) {
  const counts = new Array(steps).fill(0);
  for (let i = 0; i < sparse.length; i += 2) counts[sparse[i]] = sparse[i + 1];
  for (let i = steps - 2; i >= 0; i--) counts[i] += counts[i + 1];
  return counts;
}
const right = data.right.map(above), wrong = data.wrong.map(kinds => kinds.map(above));
const pairs = data.confusions.map(([truth, detected, sparse]) => [truth, detected, above(sparse)]);
const CONFUSION = data.kinds.indexOf("confusion");

const share = (part, whole) => whole ? (part / whole).toFixed(3) : "–";
function rates(hits, errors, objects) {
  return [share(hits, hits + errors), share(hits, objects), share(2 * hits, hits + errors + objects)];
}

const slider = document.getElementById("threshold"), shown = document.getElementById("shown");
const chooser = document.getElementById("around"), matrix = document.getElementById("matrix");
const rows = [...document.querySelectorAll("#at tbody tr")];
const bars = [...document.querySelectorAll("#kinds tbody tr")];

function update() {
  const t = Number(slider.value), text = data.thresholds[t].toFixed(2);
  slider.setAttribute("aria-valuetext", text);
  document.getElementById("value").textContent = text;
  const hits = sum(right.map(r => r[t])), objects = sum(data.objects.filter((_, k) => data.evaluated[k]));
  const errors = data.kinds.map((_, kind) => sum(wrong.map(w => w[kind][t])));
  const all = sum(errors), [precision, recall, f1] = rates(hits, all, objects);
  const figures = [precision, recall, f1, hits, all, objects - hits];
  document.querySelectorAll("#figures b").forEach((b, i) => { b.textContent = figures[i].toLocaleString("en"); });
  shown.textContent = `At score threshold ${text}: precision ${precision}, recall ${recall}, F1 ${f1}.`;
  for (const row of rows) {
    const k = Number(row.dataset.row), false_ = wrong[k].map(w => w[t]);
    const cells = [...rates(right[k][t], sum(false_), data.objects[k]),
      right[k][t], sum(false_), data.objects[k] - right[k][t], ...false_];
    cells.forEach((value, i) => { row.cells[i + 1].textContent = value.toLocaleString("en"); });
  }
  bars.forEach((row, kind) => {
    const count = kind < errors.length ? errors[kind] : objects - hits;
    row.cells[1].textContent = count.toLocaleString("en");
    row.cells[1].style.setProperty("--share", `${100 * count / Math.max(1, all, objects - hits)}%`);
  });
  drawMatrix(t);
}

function cell(row, value, whole, kind) {
  const td = row.insertCell();
  td.textContent = value === null ? "–" : value ? value.toLocaleString("en") : "";
  if (value) td.style.setProperty("--share", `${8 + 42 * Math.min(1, value / Math.max(1, whole))}%`);
  if (kind) td.className = kind;
}

function heading(row, text, kind = "", scope = "col") {
  const th = document.createElement("th"), span = document.createElement("span");
  th.scope = scope;
  th.className = kind;
  th.title = span.textContent = text;
  th.append(span);
  row.append(th);
}

// Return the classes of the matrix. If there are too many, return those with the most confusions, or with the most
// confusions with the selected class.
function chosen(t) {
  if (data.names.length <= MOST) return data.names.map((_, k) => k);
  const weight = new Array(data.names.length).fill(0), centre = Number(chooser.value);
  for (const [truth, detected, counts] of pairs) {
    if (centre < 0 || truth === centre || detected === centre) {
      weight[truth] += counts[t];
      weight[detected] += counts[t];
    }
  }
  if (centre >= 0) weight[centre] = Infinity;
  const order = data.names.map((_, k) => k).sort((a, b) => weight[b] - weight[a] || a - b);
  return order.slice(0, MOST).sort((a, b) => a - b);
}

function drawMatrix(t) {
  const classes = chosen(t), place = new Map(classes.map((k, i) => [k, i])), size = classes.length;
  const counts = classes.map(() => new Array(size).fill(0));
  const elsewhere = { row: new Array(size).fill(0), column: classes.map(k => wrong[k][CONFUSION][t]) };
  for (const [truth, detected, above] of pairs) {
    const i = place.get(truth), j = place.get(detected);
    if (i !== undefined && j !== undefined) {
      counts[i][j] = above[t];
      elsewhere.column[j] -= above[t];
    } else if (i !== undefined) elsewhere.row[i] += above[t];
  }
  const partly = size < data.names.length;
  const head = document.createElement("thead"), body = document.createElement("tbody"), top = head.insertRow();
  heading(top, "object ↓ detected as →");
  classes.forEach(k => heading(top, data.names[k]));
  if (partly) heading(top, "other classes", "apart");
  heading(top, "missed", "apart");
  classes.forEach((k, i) => {
    const row = body.insertRow(), whole = data.objects[k];
    heading(row, data.names[k], "", "row");
    classes.forEach((c, j) => cell(row, i === j ? right[k][t] : counts[i][j], whole, i === j ? "same" : ""));
    if (partly) cell(row, elsewhere.row[i], whole, "apart");
    cell(row, data.evaluated[k] ? whole - right[k][t] : null, whole, "apart");
  });
  const tails = [["background", k => sum(wrong[k].map(w => w[t])) - wrong[k][CONFUSION][t]]];
  if (partly) tails.unshift(["other classes", (_, j) => elsewhere.column[j]]);
  tails.forEach(([name, count], n) => {
    const row = body.insertRow();
    if (!n) row.className = "apart";
    heading(row, name, "", "row");
    classes.forEach((k, j) => cell(row, count(k, j), right[k][t] + sum(wrong[k].map(w => w[t]))));
    cell(row, 0, 0, "apart");
    if (partly) cell(row, 0, 0, "apart");
  });
  matrix.tHead?.remove();
  matrix.tBodies[0]?.remove();
  matrix.append(head, body);
}

slider.addEventListener("input", update);
chooser?.addEventListener("change", update);
update();

const byClass = document.getElementById("case-class"), byKind = document.getElementById("case-kind");
const more = document.getElementById("more"), FEW = 24;
function filter(most) {
  let fitting = 0;
  for (const figure of document.querySelectorAll(".cases figure")) {
    const fits = ["", figure.dataset.class].includes(byClass.value) && ["", figure.dataset.kind].includes(byKind.value);
    fitting += fits;
    figure.hidden = !fits || fitting > most;
  }
  more.hidden = fitting <= most;
  more.textContent = `Show ${fitting - most} more`;
  document.getElementById("count").textContent = `${Math.min(fitting, most)} of ${fitting} shown`;
}
if (more) {
  for (const select of [byClass, byKind]) select.addEventListener("change", () => filter(FEW));
  more.addEventListener("click", () => filter(Infinity));
  filter(FEW);
}
