"""Clouds on a web page, turned with the mouse: what the pages of reports, `show` and `serve` share.

The page that holds SCRIPT must have a `<select id="up">` of y and z; one that holds LAYERS too, a `<select id="layer">`
and an element `meaning`. Nothing is fetched from anywhere.
"""

import base64
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

STYLE = """body{font:14px/1.4 system-ui,sans-serif;margin:1.5rem;color:#222;background:#fff}
#grid{display:grid;grid-template-columns:repeat(auto-fill,minmax(220px,1fr));gap:12px;margin-top:1rem}
figure{margin:0;border:1px solid #ddd;border-radius:6px;overflow:hidden}
canvas{display:block;width:100%;aspect-ratio:1;background:#10151c;cursor:grab;touch-action:none}
figcaption{padding:6px 8px;overflow-wrap:anywhere}.wrong{color:#b3261e}.true{color:#146c2e}small{color:#666}
label{margin-right:10px}.bar{display:inline-block;width:7rem;height:.6rem;border-radius:3px;margin:0 6px}
table{border-collapse:collapse}td,th{padding:1px 12px 1px 0;text-align:left}
"""

# `view.layer` colours the points: {values: a byte per point, classes: whether they are names and not amounts}; without
# one, nearer points are lighter.
SCRIPT = """const up = document.getElementById("up"), views = [];
function text(parent, tag, value, kind) {
  const node = document.createElement(tag);
  node.textContent = value; if (kind) node.className = kind;
  return parent.appendChild(node);
}
function decode(base64, kind) {
  const bytes = atob(base64), values = new kind(bytes.length);
  for (let i = 0; i < bytes.length; i++) values[i] = bytes.charCodeAt(i);
  return values;
}
function hue(value) { return value * 137.5 % 360; }
function colour(layer, i, near) {
  if (!layer) return `hsl(${210 - 150 * near} 80% ${35 + 35 * near}%)`;
  const value = layer.values[i];
  if (layer.classes) return `hsl(${hue(value)} 75% ${45 + 20 * near}%)`;
  return `hsl(${260 - 210 * value / 255} 85% ${28 + 37 * value / 255}%)`;
}
function draw(view) {
  const {canvas, points} = view, pen = canvas.getContext("2d");
  const size = Math.round(canvas.clientWidth * devicePixelRatio) || 220;
  if (canvas.width !== size) canvas.width = canvas.height = size;
  pen.clearRect(0, 0, size, size);
  const cy = Math.cos(view.yaw), sy = Math.sin(view.yaw), cp = Math.cos(view.pitch), sp = Math.sin(view.pitch);
  const scale = view.zoom * size * 0.46 / view.radius, dot = Math.max(1.5, size / 130);
  const zUp = up.value === "z", seen = [];
  for (let i = 0; i < points.length; i += 3) {
    const x = points[i], y = zUp ? points[i + 2] : points[i + 1], z = zUp ? -points[i + 1] : points[i + 2];
    const a = cy * x + sy * z, b = cy * z - sy * x;
    seen.push([a, cp * y - sp * b, sp * y + cp * b, i / 3]);
  }
  seen.sort((p, q) => p[2] - q[2]);
  for (const [a, b, depth, i] of seen) {
    pen.fillStyle = colour(view.layer, i, Math.min(1, Math.max(0, depth / view.radius / 2 + 0.5)));
    pen.fillRect(size / 2 + a * scale, size / 2 - b * scale, dot, dot);
  }
}
function reset(view) { view.yaw = 0.6; view.pitch = 0.35; view.zoom = 1; draw(view); }
function open(canvas, points) {
  const view = {canvas, points: decode(points, Int8Array), layer: null, radius: 1};
  for (let i = 0; i < view.points.length; i += 3) {
    view.radius = Math.max(view.radius, Math.hypot(...view.points.subarray(i, i + 3)));
  }
  views.push(view);
  canvas.onpointerdown = event => canvas.setPointerCapture(event.pointerId);
  canvas.onpointermove = event => {
    if (!event.buttons) return;
    view.yaw += event.movementX * 0.01;
    view.pitch = Math.max(-1.57, Math.min(1.57, view.pitch + event.movementY * 0.01));
    draw(view);
  };
  canvas.addEventListener("wheel", event => {
    event.preventDefault();
    view.zoom = Math.max(0.3, Math.min(8, view.zoom * Math.exp(-event.deltaY * 0.001)));
    draw(view);
  }, {passive: false});
  canvas.ondblclick = () => reset(view);
  reset(view);
  return view;
}
up.onchange = () => views.forEach(draw);
addEventListener("resize", () => views.forEach(draw));
"""

# `known` takes layers and what they mean into the choice; `add` gives a view its layers, as `amounts` and `classes`
# make them, and the element that tells what their colours are.
LAYERS = """const meanings = {}, choice = document.getElementById("layer"), shown = [];
function known(meanings) {
  for (const [name, meaning] of Object.entries(meanings)) {
    if (!(name in meanings)) text(choice, "option", name);
    meanings[name] = meaning;
  }
}
function add(view, layers, legend) {
  for (const layer of Object.values(layers)) layer.values = decode(layer.values, Uint8Array);
  shown.push([view, layers, legend]);
}
function choose() {
  document.getElementById("meaning").textContent = meanings[choice.value] || "";
  for (const [view, layers, legend] of shown) {
    const layer = view.layer = layers[choice.value] || null;
    legend.textContent = "";
    if (layer && !layer.classes) {
      const stops = [0, 32, 64, 96, 128, 160, 192, 224, 255].map(value => colour({values: [value]}, 0, 1));
      text(legend, "span", layer.low.toPrecision(3));
      text(legend, "i", "", "bar").style.background = `linear-gradient(90deg, ${stops.join()})`;
      text(legend, "span", layer.high.toPrecision(3));
    }
    for (const [name, value] of layer && layer.classes ? Object.entries(layer.names) : []) {
      text(legend, "b", `\\u25cf ${name} `).style.color = `hsl(${hue(value)} 75% 40%)`;
    }
    draw(view);
  }
}
choice.onchange = choose;
"""


def quantised(points: Tensor) -> str:
    """Centred coordinates as int8 of the largest one, base64: 3 bytes per point, a pixel or two of error. [n, 3]"""
    centred = points - (points.amax(0) + points.amin(0)) / 2
    scaled = (127 * centred / centred.abs().max().clamp(min=1e-12)).round().to(torch.int8)
    return _base64(scaled)


def amounts(values: Tensor) -> dict[str, Any]:
    """A layer that colours points from the smallest value to the largest; the legend shows both. [n]"""
    low, high = float(values.min()), float(values.max())
    shares = (values - low) / max(high - low, 1e-12)
    return {"values": _base64((255 * shares).round().to(torch.uint8)), "classes": False, "low": low, "high": high}


def classes(labels: Tensor, names: Sequence[str]) -> dict[str, Any]:
    """A layer that colours points by class, of which there may be 256. int64, [n]"""
    present = {name: i for i, name in enumerate(names) if bool((labels == i).any())}
    return {"values": _base64(labels.to(torch.uint8)), "classes": True, "names": present}


def up_options(axis: str) -> str:
    """The options of `<select id="up">`."""
    return "".join(f"<option{' selected' if a == axis else ''}>{a}</option>" for a in "yz")


def _base64(values: Tensor) -> str:
    return base64.b64encode(values.contiguous().numpy().tobytes()).decode()
