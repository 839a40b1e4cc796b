"""The page of `pointpeft serve`: scans dropped on it are shown in the colours of predictions and token maps."""

import json

from pointpeft.drawing import viewer
from pointpeft.drawing.card import DEPTH
from pointpeft.tasks.adapted import Adapted
from pointpeft.tasks.base import create_task
from pointpeft.view.show import layer_meanings


def page_of(adapted: Adapted, megabytes: float) -> str:
    """The page for one model, without any outside reference."""
    task = create_task(adapted.model.task)
    facts = f"{adapted.model.method.name} on {adapted.model.backbone_name}, {len(adapted.classes)} classes"
    if not task.streams:
        facts += f", {len(task.label_names(adapted))} parts"
    categories = task.categories(adapted)
    values = {"facts": facts, "categories": categories, "meanings": layer_meanings(), "plain": DEPTH}
    return (
        PAGE.replace("@UP@", viewer.up_options("z"))
        .replace("@STYLE@", viewer.STYLE)
        .replace("@VIEWER@", viewer.SCRIPT)
        .replace("@LAYERS@", viewer.LAYERS)
        .replace("@TITLE@", task.question)
        .replace("@LIMIT@", f"{megabytes:g}")
        .replace("@DATA@", json.dumps(values).replace("<", "\\u003c"))
    )


PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>pointpeft</title>
<meta name="viewport" content="width=device-width">
<style>
@STYLE@#drop{border:2px dashed #888;border-radius:8px;padding:2.5rem;text-align:center;cursor:pointer;display:block}
#drop{margin:0}#drop.over{background:#eef4ff;border-color:#36c}#grid{grid-template-columns:repeat(auto-fill,minmax(320px,1fr))}
</style></head><body>
<h1>@TITLE@</h1><p id="facts"></p>
<label id="drop">Drop scans here, or click to choose: .ply .npy .pcd .las .xyz .off .obj .stl and others,
up to @LIMIT@ MB each<input id="files" type="file" multiple hidden></label>
<p><label id="kind" hidden>Category <select id="category"></select></label>
<label>Colour <select id="layer"></select></label> <label>Up axis <select id="up">@UP@</select></label>
<small>drag to turn, wheel to zoom, double click to reset</small></p>
<p id="meaning"></p>
<div id="grid"></div>
<script>
"use strict";
@VIEWER@
@LAYERS@
const data = @DATA@, category = document.getElementById("category");
document.getElementById("facts").textContent = data.facts;
for (const name of data.categories) text(category, "option", name);
document.getElementById("kind").hidden = !data.categories.length;
const drop = document.getElementById("drop"), files = document.getElementById("files");
async function classify(file) {
  const figure = document.createElement("figure"), caption = document.createElement("figcaption");
  text(caption, "span", `${file.name} ...`);
  figure.appendChild(caption);
  document.getElementById("grid").prepend(figure);
  let result, query = "predict?layers=true&name=" + encodeURIComponent(file.name);
  if (data.categories.length) query += "&category=" + encodeURIComponent(category.value);
  try {
    result = await (await fetch(query, {method: "POST", body: file})).json();
  } catch (error) { result = {error: String(error)}; }
  caption.textContent = "";
  if (result.error) { text(caption, "span", `${file.name}: ${result.error}`, "wrong"); return; }
  const canvas = document.createElement("canvas");
  figure.prepend(canvas);
  for (const [i, entry] of (result.top || []).entries()) {
    text(caption, i ? "small" : "b", `${entry.class} ${(100 * entry.probability).toFixed(1)}% `, i ? "" : "true");
  }
  if (result.parts) text(caption, "b", result.category, "true");
  for (const [part, share] of Object.entries(result.parts || {})) {
    text(caption, "small", ` ${part} ${(100 * share).toFixed(1)}%`);
  }
  caption.appendChild(document.createElement("br"));
  text(caption, "small", result.name);
  caption.appendChild(document.createElement("br"));
  const legend = document.createElement("small");
  caption.appendChild(legend);
  const first = !shown.length;
  for (const name of [data.plain, ...Object.keys(result.layers)]) known({[name]: data.meanings[name]});
  if (first && result.parts) choice.value = Object.keys(result.layers)[0];
  add(open(canvas, result.points), result.layers, legend);
  choose();
}
function all(list) { for (const file of list) classify(file); }
files.onchange = () => { all(files.files); files.value = ""; };
// Anywhere on the page: beside the field, the browser would leave the page and open the file.
ondragover = event => { event.preventDefault(); drop.className = "over"; };
ondragleave = event => { if (!event.relatedTarget) drop.className = ""; };
ondrop = event => { event.preventDefault(); drop.className = ""; all(event.dataTransfer.files); };
</script></body></html>
"""
