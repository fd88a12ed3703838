"use strict";
// The viewer of view.html. Slices are drawn on plain canvases, surfaces with WebGL2. Nothing is loaded.
// Voxel (i, j, k) grows to the patient's right, front and head; arrays have i fastest.
(() => {
  const facts = JSON.parse(document.getElementById("facts").textContent);
  const shape = facts.shape;
  const strides = [1, shape[0], shape[0] * shape[1]];
  const element = (id) => document.getElementById(id);
  const clamp = (value, low, high) => Math.min(high, Math.max(low, value));

  // As in radiology: the patient's right and front to the left of the picture, head and front up.
  const PLANES = [
    { name: "Axial", across: 0, down: 1, through: 2, marks: ["R", "L", "A", "P"], seen: "seen from the feet" },
    { name: "Coronal", across: 0, down: 2, through: 1, marks: ["R", "L", "H", "F"], seen: "seen from the front" },
    { name: "Sagittal", across: 1, down: 2, through: 0, marks: ["A", "P", "H", "F"], seen: "front to the left" },
  ];
  const state = {
    cursor: facts.scans[0].start.slice(),
    window: { low: facts.windows[0][1], high: facts.windows[0][2] },
    opacity: 0.4,
    show: { lungs: true, infiltrate: true, truth: true, agreement: false, change: true, cross: true },
    camera: { yaw: 0.5, pitch: 0.15, zoom: 1 },
    turning: false,
  };
  const scans = facts.scans.map((scan) => ({ ...scan, picture: null, masks: null }));
  const panes = [];
  const spaces = [];

  // ---- unpacking -------------------------------------------------------------------------------------------------

  async function unpack(id) {
    const holder = element(id);
    const text = atob(holder.textContent);
    holder.remove();
    const bytes = new Uint8Array(text.length);
    for (let n = 0; n < text.length; n++) bytes[n] = text.charCodeAt(n);
    const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate"));
    return new Response(stream).arrayBuffer();
  }

  // ---- slices ----------------------------------------------------------------------------------------------------

  const rgb = (colour) => [1, 3, 5].map((n) => parseInt(colour.slice(n, n + 2), 16));
  const COLOURS = Object.fromEntries(Object.entries(facts.colours).map(([name, colour]) => [name, rgb(colour)]));
  const CHANGE = Object.fromEntries(Object.entries(facts.change).map(([label, look]) => [label, rgb(look[1])]));
  const ONLY_FOUND = rgb("#ff4fd8");

  function greys() {
    const { low, high } = state.window;
    return Uint8ClampedArray.from(facts.steps, (hu) => Math.round((255 * (hu - low)) / (high - low)));
  }

  const bits = (byte, name) => (byte >> facts.bits[name]) & 3;

  // What is laid over a voxel: a colour to fill with, or null.
  function filling(byte, scan) {
    const found = bits(byte, "infiltrate");
    if (scan.truth && state.show.agreement) {
      const drawn = bits(byte, "truth");
      if (found && drawn) return COLOURS.infiltrate;
      return found ? ONLY_FOUND : drawn ? COLOURS.truth : null;
    }
    const changed = bits(byte, "change");
    if (facts.change[1] && state.show.change) return changed ? CHANGE[changed] : null;
    return found && state.show.infiltrate ? COLOURS.infiltrate : null;
  }

  // The outline through a voxel on a mask's rim: a colour, or null.
  function outline(masks, place, near, scan) {
    const byte = masks[place];
    if (scan.truth && state.show.truth && !state.show.agreement && bits(byte, "truth")) {
      if (near.some((other) => other < 0 || !bits(masks[other], "truth"))) return COLOURS.truth;
    }
    if (!state.show.lungs) return null;
    const side = bits(byte, "lungs");
    if (!side || near.every((other) => other >= 0 && bits(masks[other], "lungs") === side)) return null;
    return side === 2 ? COLOURS.left_lung : COLOURS.right_lung;
  }

  // Two small pictures of one voxel per pixel: the scan in greys, and what lies over it.
  function paint(scan, plane) {
    const width = shape[plane.across], height = shape[plane.down];
    const base = new ImageData(width, height), over = new ImageData(width, height);
    const grey = greys(), start = state.cursor[plane.through] * strides[plane.through];
    const right = strides[plane.across], down = strides[plane.down];
    const alpha = Math.round(255 * state.opacity);
    for (let row = 0, pixel = 0; row < height; row++) {
      for (let column = 0; column < width; column++, pixel += 4) {
        const place = start + (width - 1 - column) * right + (height - 1 - row) * down;
        const value = grey[scan.picture[place]];
        base.data[pixel] = base.data[pixel + 1] = base.data[pixel + 2] = value;
        base.data[pixel + 3] = 255;
        if (!scan.masks[place]) continue;
        const near = [
          column > 0 ? place + right : -1, column < width - 1 ? place - right : -1,
          row > 0 ? place + down : -1, row < height - 1 ? place - down : -1,
        ];
        const line = outline(scan.masks, place, near, scan);
        const colour = line || filling(scan.masks[place], scan);
        if (!colour) continue;
        over.data.set(colour, pixel);
        over.data[pixel + 3] = line ? Math.round(255 * Math.min(1, state.opacity * 2)) : alpha;
      }
    }
    return { base, over };
  }

  const scratch = document.createElement("canvas");

  function blow(context, image, smooth) {
    scratch.width = image.width;
    scratch.height = image.height;
    scratch.getContext("2d").putImageData(image, 0, 0);
    context.imageSmoothingEnabled = smooth;
    context.drawImage(scratch, 0, 0, context.canvas.width, context.canvas.height);
  }

  function drawPane(pane) {
    const { canvas, plane, scan } = pane;
    const ratio = Math.min(window.devicePixelRatio || 1, 2);
    const width = Math.max(1, Math.round(canvas.clientWidth * ratio));
    const height = Math.max(1, Math.round(canvas.clientHeight * ratio));
    if (canvas.width !== width) canvas.width = width;
    if (canvas.height !== height) canvas.height = height;
    const context = canvas.getContext("2d");
    const { base, over } = paint(scan, plane);
    blow(context, base, true);
    blow(context, over, false);
    if (state.show.cross) drawCross(context, plane, ratio);
    drawMarks(context, plane, ratio);
    describe(pane);
  }

  function drawCross(context, plane, ratio) {
    const { width, height } = context.canvas;
    const x = ((shape[plane.across] - 0.5 - state.cursor[plane.across]) / shape[plane.across]) * width;
    const y = ((shape[plane.down] - 0.5 - state.cursor[plane.down]) / shape[plane.down]) * height;
    const gap = 12 * ratio;
    context.strokeStyle = "rgba(255, 176, 0, 0.75)";
    context.lineWidth = ratio;
    context.beginPath();
    for (const [x0, y0, x1, y1] of [[0, y, x - gap, y], [x + gap, y, width, y], [x, 0, x, y - gap], [x, y + gap, x, height]]) {
      context.moveTo(x0, y0);
      context.lineTo(x1, y1);
    }
    context.stroke();
  }

  function drawMarks(context, plane, ratio) {
    const { width, height } = context.canvas;
    const [left, right, top, bottom] = plane.marks;
    context.font = `bold ${13 * ratio}px system-ui, sans-serif`;
    context.lineWidth = 3 * ratio;
    context.strokeStyle = "#000";
    context.fillStyle = "#fff";
    context.textBaseline = "middle";
    const edge = 10 * ratio;
    for (const [text, x, y, align] of [
      [left, edge * 0.6, height / 2, "left"], [right, width - edge * 0.6, height / 2, "right"],
      [top, width / 2, edge, "center"], [bottom, width / 2, height - edge, "center"],
    ]) {
      context.textAlign = align;
      context.strokeText(text, x, y);
      context.fillText(text, x, y);
    }
    const bar = (50 / (shape[plane.across] * facts.spacing[plane.across])) * width;
    if (bar > 0.45 * width) return;
    context.fillRect(edge, height - edge * 0.8, bar, 2 * ratio);
    context.textAlign = "left";
    context.font = `${11 * ratio}px system-ui, sans-serif`;
    context.strokeText("50 mm", edge, height - edge * 1.8);
    context.fillText("50 mm", edge, height - edge * 1.8);
  }

  function describe(pane) {
    const { plane, scan } = pane;
    const number = state.cursor[plane.through] + 1;
    const text = `${plane.name} slice ${number} of ${shape[plane.through]}, ${plane.seen}`;
    pane.canvas.setAttribute("aria-label", scans.length > 1 ? `${scan.title}: ${text}` : text);
    pane.count.textContent = `${number} / ${shape[plane.through]}`;
    pane.slider.value = state.cursor[plane.through];
  }

  function world(voxel) {
    return [0, 1, 2].map((row) => facts.affine[row][3] + [0, 1, 2].reduce((sum, n) => sum + facts.affine[row][n] * voxel[n], 0));
  }

  const signed = (value) => (value < 0 ? "\u2212" : "") + Math.abs(value);

  function readOut() {
    const place = state.cursor.reduce((sum, value, axis) => sum + value * strides[axis], 0);
    const [x, y, z] = world(state.cursor).map((value) => signed(Math.round(value * 10) / 10));
    const parts = scans.map((scan) => {
      const byte = scan.masks[place];
      const inside = [["", "right lung", "left lung", "lung"][bits(byte, "lungs")], bits(byte, "infiltrate") ? "infiltrate" : "",
        bits(byte, "truth") ? "reference" : ""].filter(Boolean).join(", ");
      const hu = `about ${signed(facts.steps[scan.picture[place]])} HU`;
      return (scans.length > 1 ? `${scan.title}: ` : "") + hu + (inside ? ` (${inside})` : "");
    });
    const { low, high } = state.window;
    element("readout").textContent = `At the cross: x ${x}, y ${y}, z ${z} mm (right, front, head); ${parts.join("; ")}. `
      + `Window ${signed(low)} to ${signed(high)} HU.`;
  }

  // ---- surfaces --------------------------------------------------------------------------------------------------

  const VERTEX = `#version 300 es
    in vec3 place; in vec3 normal;
    uniform mat3 turn; uniform vec3 low; uniform vec3 size; uniform vec3 middle; uniform vec3 scale;
    out vec3 facing;
    void main() {
      facing = turn * normal;
      gl_Position = vec4(turn * (low + place * size - middle) * scale, 1.0);
    }`;
  const FRAGMENT = `#version 300 es
    precision highp float;
    in vec3 facing; uniform vec3 colour; uniform float opacity; out vec4 result;
    void main() {
      vec3 n = normalize(facing);
      if (!gl_FrontFacing) n = -n;
      float light = max(dot(n, normalize(vec3(-0.3, 0.45, 0.84))), 0.0);
      float rim = opacity < 1.0 ? 0.6 * pow(1.0 - abs(n.z), 2.0) : 0.0;
      vec3 shade = colour * (0.3 + 0.7 * light) + vec3(0.12) * pow(light, 24.0);
      result = vec4(shade, min(1.0, opacity + rim));
    }`;

  function program(gl) {
    const made = gl.createProgram();
    for (const [kind, source] of [[gl.VERTEX_SHADER, VERTEX], [gl.FRAGMENT_SHADER, FRAGMENT]]) {
      const shader = gl.createShader(kind);
      gl.shaderSource(shader, source);
      gl.compileShader(shader);
      if (!gl.getShaderParameter(shader, gl.COMPILE_STATUS)) throw new Error(gl.getShaderInfoLog(shader));
      gl.attachShader(made, shader);
    }
    gl.linkProgram(made);
    if (!gl.getProgramParameter(made, gl.LINK_STATUS)) throw new Error(gl.getProgramInfoLog(made));
    return made;
  }

  function normalsOf(place, triangles, size) {
    const normals = new Float32Array(place.length);
    for (let t = 0; t < triangles.length; t += 3) {
      const [a, b, c] = [triangles[t] * 3, triangles[t + 1] * 3, triangles[t + 2] * 3];
      const u = [0, 1, 2].map((n) => (place[b + n] - place[a + n]) * size[n]);
      const v = [0, 1, 2].map((n) => (place[c + n] - place[a + n]) * size[n]);
      const across = [u[1] * v[2] - u[2] * v[1], u[2] * v[0] - u[0] * v[2], u[0] * v[1] - u[1] * v[0]];
      for (const corner of [a, b, c]) for (let n = 0; n < 3; n++) normals[corner + n] += across[n];
    }
    return normals;
  }

  function upload(gl, made, mesh) {
    const place = new Uint16Array(mesh.vertices), triangles = new Uint32Array(mesh.triangles);
    const array = gl.createVertexArray();
    gl.bindVertexArray(array);
    const attribute = (name, data, type, normalised) => {
      gl.bindBuffer(gl.ARRAY_BUFFER, gl.createBuffer());
      gl.bufferData(gl.ARRAY_BUFFER, data, gl.STATIC_DRAW);
      const where = gl.getAttribLocation(made, name);
      gl.enableVertexAttribArray(where);
      gl.vertexAttribPointer(where, 3, type, normalised, 0, 0);
    };
    attribute("place", place, gl.UNSIGNED_SHORT, true);
    attribute("normal", normalsOf(place, triangles, mesh.size), gl.FLOAT, false);
    gl.bindBuffer(gl.ELEMENT_ARRAY_BUFFER, gl.createBuffer());
    gl.bufferData(gl.ELEMENT_ARRAY_BUFFER, triangles, gl.STATIC_DRAW);
    return { ...mesh, array, count: triangles.length };
  }

  // Rows are the screen's axes (right, up, towards the viewer) in patient axes; yaw 0 looks the patient in the face.
  function turnMatrix({ yaw, pitch }) {
    const c = Math.cos(yaw), s = Math.sin(yaw), cp = Math.cos(pitch), sp = Math.sin(pitch);
    const right = [-c, s, 0], up = [0, 0, 1], out = [s, c, 0];
    return [right, up.map((value, n) => cp * value - sp * out[n]), up.map((value, n) => sp * value + cp * out[n])];
  }

  const shown = (name) => (name === "infiltrate" ? state.show.infiltrate : name === "truth" ? state.show.truth : state.show.lungs);

  function drawSpace(space) {
    const { gl, canvas } = space;
    const rows = turnMatrix(state.camera);
    label(space, rows);
    if (!gl || gl.isContextLost()) return;
    const { lungs, infiltrate, truth } = state.show;
    const seen = JSON.stringify([state.camera, lungs, infiltrate, truth, canvas.clientWidth, canvas.clientHeight]);
    if (seen === space.seen) return;  // leafing through slices moves no surface
    space.seen = seen;
    const ratio = Math.min(window.devicePixelRatio || 1, 2);
    canvas.width = Math.max(1, Math.round(canvas.clientWidth * ratio));
    canvas.height = Math.max(1, Math.round(canvas.clientHeight * ratio));
    gl.viewport(0, 0, canvas.width, canvas.height);
    gl.clearColor(0.043, 0.051, 0.063, 1);
    gl.clear(gl.COLOR_BUFFER_BIT | gl.DEPTH_BUFFER_BIT);
    gl.useProgram(space.program);
    const uniform = (name) => gl.getUniformLocation(space.program, name);
    const near = state.camera.zoom / space.radius, wide = canvas.width / canvas.height;
    gl.uniformMatrix3fv(uniform("turn"), true, rows.flat());
    gl.uniform3fv(uniform("middle"), space.middle);
    gl.uniform3f(uniform("scale"), wide > 1 ? near / wide : near, wide > 1 ? near : near * wide, -0.2 / space.radius);
    gl.enable(gl.DEPTH_TEST);
    const parts = space.meshes.filter((mesh) => shown(mesh.name)).sort((a, b) => b.opacity - a.opacity);
    for (const mesh of parts) {
      gl.uniform3fv(uniform("low"), mesh.low);
      gl.uniform3fv(uniform("size"), mesh.size);
      gl.uniform3fv(uniform("colour"), mesh.colour);
      gl.uniform1f(uniform("opacity"), mesh.opacity);
      gl.bindVertexArray(mesh.array);
      const clear = mesh.opacity < 1;
      gl.depthMask(!clear);
      (clear ? gl.enable : gl.disable).call(gl, gl.BLEND);
      gl.blendFunc(gl.SRC_ALPHA, gl.ONE_MINUS_SRC_ALPHA);
      (clear ? gl.enable : gl.disable).call(gl, gl.CULL_FACE);
      (mesh.name === "truth" ? gl.enable : gl.disable).call(gl, gl.POLYGON_OFFSET_FILL);  // where both lie, no flicker
      gl.polygonOffset(2, 2);
      for (const side of clear ? [gl.FRONT, gl.BACK] : [gl.BACK]) {
        gl.cullFace(side);
        gl.drawElements(gl.TRIANGLES, mesh.count, gl.UNSIGNED_INT, 0);
      }
      gl.depthMask(true);
    }
  }

  function label(space, rows) {
    const letter = (direction) => {
      const axis = [0, 1, 2].reduce((best, n) => (Math.abs(direction[n]) > Math.abs(direction[best]) ? n : best), 0);
      return (direction[axis] > 0 ? "RAH" : "LPF")[axis];
    };
    const minus = (direction) => direction.map((value) => -value);
    const texts = { e: letter(rows[0]), w: letter(minus(rows[0])), n: letter(rows[1]), s: letter(minus(rows[1])) };
    for (const [side, text] of Object.entries(texts)) space.marks[side].textContent = text;
    space.canvas.setAttribute("aria-label", `Surfaces in 3D, ${texts.w} to the left, ${texts.n} up; arrow keys turn them`);
  }

  async function makeSpace(space, number) {
    const scan = scans[number];
    space.meshes = [];
    if (!scan.meshes.length) return lacks(space, "There is no surface to show: nothing is marked.");
    const corners = scans.flatMap((one) => one.meshes.flatMap((mesh) => [mesh.low, mesh.low.map((v, n) => v + mesh.size[n])]));
    const low = [0, 1, 2].map((n) => Math.min(...corners.map((c) => c[n])));
    const high = [0, 1, 2].map((n) => Math.max(...corners.map((c) => c[n])));
    space.middle = low.map((value, n) => (value + high[n]) / 2);
    space.radius = 0.42 * Math.hypot(...low.map((value, n) => high[n] - value));
    const gl = space.canvas.getContext("webgl2", { antialias: true, alpha: false, preserveDrawingBuffer: true });
    if (!gl) return lacks(space, "This browser offers no WebGL2, so the surfaces cannot be turned. The slices need none.");
    space.program = program(gl);
    for (let m = 0; m < scan.meshes.length; m++) {
      const vertices = await unpack(`vertices-${number}-${m}`), triangles = await unpack(`triangles-${number}-${m}`);
      space.meshes.push(upload(gl, space.program, { ...scan.meshes[m], vertices, triangles }));
    }
    space.gl = gl;
    space.canvas.addEventListener("webglcontextlost", () => lacks(space, "The graphics driver stopped; load the page again to see the surfaces."));
  }

  function lacks(space, why) {
    const line = document.createElement("p");
    line.className = "message";
    line.textContent = why;
    const still = element("still");
    space.stage.replaceChildren(line, ...(still ? [still.content.cloneNode(true)] : []));
    space.gl = null;
  }

  // ---- the page --------------------------------------------------------------------------------------------------

  function make(tag, attributes, ...children) {
    const made = document.createElement(tag);
    for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
    made.append(...children);
    return made;
  }

  function buildPane(number, plane) {
    const scan = scans[number], last = shape[plane.through] - 1;
    const canvas = make("canvas", { tabindex: "0", role: "img", id: `${plane.name.toLowerCase()}-${number}` });
    canvas.style.aspectRatio = `${shape[plane.across] * facts.spacing[plane.across]} / ${shape[plane.down] * facts.spacing[plane.down]}`;
    const count = make("span", {});
    const slider = make("input", { type: "range", min: "0", max: String(last), "aria-label": `${plane.name} slice` });
    const caption = make("figcaption", {}, scans.length > 1 ? `${scan.title}, ${plane.name.toLowerCase()}` : plane.name, count);
    const pane = { canvas, plane, scan, count, slider };
    slider.addEventListener("input", () => moveTo(plane.through, Number(slider.value)));
    canvas.addEventListener("wheel", (event) => {
      event.preventDefault();
      moveTo(plane.through, state.cursor[plane.through] + (event.deltaY < 0 ? 1 : -1));
    }, { passive: false });
    const point = (event) => {
      const box = canvas.getBoundingClientRect();
      const x = (event.clientX - box.left) / box.width, y = (event.clientY - box.top) / box.height;
      place(plane.across, shape[plane.across] - 1 - Math.floor(x * shape[plane.across]));
      place(plane.down, shape[plane.down] - 1 - Math.floor(y * shape[plane.down]));
      draw();
    };
    canvas.addEventListener("pointerdown", (event) => {
      canvas.setPointerCapture(event.pointerId);
      point(event);
    });
    canvas.addEventListener("pointermove", (event) => event.buttons & 1 && point(event));
    canvas.addEventListener("keydown", (event) => scrollByKey(event, plane));
    panes.push(pane);
    return make("figure", { class: "pane" }, caption, canvas, make("div", { class: "steer" }, slider));
  }

  function scrollByKey(event, plane) {
    const steps = { ArrowUp: 1, ArrowRight: 1, ArrowDown: -1, ArrowLeft: -1, PageUp: 10, PageDown: -10, Home: -1e6, End: 1e6 };
    if (!(event.key in steps)) return;
    event.preventDefault();
    moveTo(plane.through, state.cursor[plane.through] + steps[event.key]);
    element("live").textContent = `${plane.name} slice ${state.cursor[plane.through] + 1}`;
  }

  const SIDES = [["Front", 0, 0], ["Right", Math.PI / 2, 0], ["Left", -Math.PI / 2, 0], ["Back", Math.PI, 0], ["Below", 0, -Math.PI / 2]];

  function buildSpace(number) {
    const canvas = make("canvas", { class: "space", tabindex: "0", role: "img", id: `space-${number}` });
    const marks = Object.fromEntries(["w", "e", "n", "s"].map((side) => [side, make("span", { class: side, "aria-hidden": "true" })]));
    const stage = make("div", { class: "stage" }, canvas, ...Object.values(marks));
    const space = { canvas, stage, marks, gl: null, meshes: [] };
    const buttons = SIDES.map(([name, yaw, pitch]) => {
      const button = make("button", { type: "button" }, name);
      button.addEventListener("click", () => { Object.assign(state.camera, { yaw, pitch }); draw(); });
      return button;
    });
    const turn = make("button", { type: "button", "aria-pressed": "false" }, "Turn");
    turn.addEventListener("click", () => {
      state.turning = !state.turning;
      document.querySelectorAll("[data-turn]").forEach((other) => other.setAttribute("aria-pressed", String(state.turning)));
      if (state.turning) requestAnimationFrame(spin);
    });
    turn.dataset.turn = "";
    canvas.addEventListener("pointerdown", (event) => canvas.setPointerCapture(event.pointerId));
    canvas.addEventListener("pointermove", (event) => {
      if (!(event.buttons & 1)) return;
      turnBy(event.movementX * 0.01, event.movementY * 0.01);
    });
    canvas.addEventListener("wheel", (event) => {
      event.preventDefault();
      zoomBy(event.deltaY < 0 ? 1.1 : 1 / 1.1);
    }, { passive: false });
    canvas.addEventListener("keydown", (event) => {
      const turns = { ArrowLeft: [-0.15, 0], ArrowRight: [0.15, 0], ArrowUp: [0, -0.15], ArrowDown: [0, 0.15] };
      if (event.key in turns) turnBy(...turns[event.key]);
      else if (event.key === "+" || event.key === "=") zoomBy(1.15);
      else if (event.key === "-") zoomBy(1 / 1.15);
      else return;
      event.preventDefault();
    });
    spaces.push(space);
    const caption = make("figcaption", {}, scans.length > 1 ? `${scans[number].title}, surfaces` : "Surfaces");
    return make("figure", { class: "pane" }, caption, stage, make("div", { class: "steer" }, ...buttons, turn));
  }

  function turnBy(yaw, pitch) {
    state.camera.yaw += yaw;
    state.camera.pitch = clamp(state.camera.pitch + pitch, -Math.PI / 2, Math.PI / 2);
    spaces.forEach(drawSpace);
  }

  function zoomBy(factor) {
    state.camera.zoom = clamp(state.camera.zoom * factor, 0.3, 8);
    spaces.forEach(drawSpace);
  }

  function spin() {
    if (!state.turning) return;
    turnBy(0.02, 0);
    requestAnimationFrame(spin);
  }

  function place(axis, value) {
    state.cursor[axis] = clamp(Math.round(value), 0, shape[axis] - 1);
  }

  function moveTo(axis, value) {
    place(axis, value);
    draw();
  }

  let waiting = false;
  function draw() {
    if (waiting) return;
    waiting = true;
    requestAnimationFrame(drawNow);
  }

  function drawNow() {
    waiting = false;
    panes.forEach(drawPane);
    spaces.forEach(drawSpace);
    readOut();
  }

  function setWindow(low, high, say) {
    state.window = { low, high };
    element("level").value = Math.round((low + high) / 2);
    element("width").value = Math.round(high - low);
    document.querySelectorAll("[data-window]").forEach((button) => {
      const [, from, to] = facts.windows[Number(button.dataset.window)];
      button.setAttribute("aria-pressed", String(from === low && to === high));
    });
    if (say) element("live").textContent = `Window ${say}`;
    draw();
  }

  function toggle(name) {
    const box = element(`show-${name}`);
    if (!box) return;
    box.checked = !box.checked;
    box.dispatchEvent(new Event("change"));
    element("live").textContent = `${name} ${box.checked ? "shown" : "hidden"}`;
  }

  function setOpacity(percent) {
    element("opacity").value = clamp(percent, 0, 100);
    state.opacity = Number(element("opacity").value) / 100;
    draw();
  }

  const KEYS = { l: "lungs", i: "infiltrate", t: "truth", a: "agreement", c: "change", x: "cross" };

  function wire() {
    document.querySelectorAll("[data-window]").forEach((button) => button.addEventListener("click", () => {
      const [name, low, high] = facts.windows[Number(button.dataset.window)];
      setWindow(low, high, name);
    }));
    const typed = () => {
      const level = Number(element("level").value), width = Math.max(1, Number(element("width").value));
      setWindow(level - width / 2, level + width / 2);
    };
    element("level").addEventListener("change", typed);
    element("width").addEventListener("change", typed);
    for (const name of Object.values(KEYS)) {
      const box = element(`show-${name}`);
      if (!box) continue;
      state.show[name] = box.checked;
      box.addEventListener("change", () => { state.show[name] = box.checked; draw(); });
    }
    element("opacity").addEventListener("input", () => setOpacity(Number(element("opacity").value)));
    document.addEventListener("keydown", (event) => {
      if (event.ctrlKey || event.metaKey || event.altKey || event.target.type === "number") return;
      const key = event.key.toLowerCase();
      if (key in KEYS) toggle(KEYS[key]);
      else if (facts.windows[Number(key) - 1]) setWindow(...facts.windows[Number(key) - 1].slice(1), facts.windows[Number(key) - 1][0]);
      else if (key === "[" || key === "]") setOpacity(100 * state.opacity + (key === "]" ? 10 : -10));
    });
    new ResizeObserver(draw).observe(element("views"));
  }

  async function start() {
    if (typeof DecompressionStream === "undefined") throw new Error("This browser is too old to unpack the scan; take one of 2023 or later.");
    for (let n = 0; n < scans.length; n++) {
      scans[n].picture = new Uint8Array(await unpack(`picture-${n}`));
      scans[n].masks = new Uint8Array(await unpack(`masks-${n}`));
    }
    const views = element("views");
    if (scans.length > 1) {
      for (const plane of PLANES) for (let n = 0; n < scans.length; n++) views.append(buildPane(n, plane));
      for (let n = 0; n < scans.length; n++) views.append(buildSpace(n));
    } else {
      for (const plane of PLANES) views.append(buildPane(0, plane));
      views.append(buildSpace(0));
    }
    wire();
    setWindow(...facts.windows[0].slice(1));
    for (let n = 0; n < spaces.length; n++) await makeSpace(spaces[n], n);
    element("message").remove();
    drawNow();
    document.documentElement.dataset.ready = "yes";
  }

  start().catch((problem) => {
    element("message").textContent = `The pictures cannot be shown: ${problem.message}`;
    document.documentElement.dataset.ready = "failed";
  });
  window.pneumoscope = { state, draw: drawNow, scans, facts };
})();
