"use strict";
// Points, cameras and paths in the robot's base frame, m, z up; painted from far to near.
for (const canvas of document.querySelectorAll("canvas[data-scene]")) turn(canvas, JSON.parse(canvas.dataset.scene));

function turn(canvas, scene) {
  const figure = canvas.closest("figure"), pen = canvas.getContext("2d"), hues = ["c0", "c1", "c2", "c3"];
  const bytes = text => Uint8Array.from(atob(text), c => c.charCodeAt(0));
  const metres = text => Float32Array.from(new Uint16Array(bytes(text).buffer), (q, i) => scene.low[i % 3] + scene.step * q);
  const start = { yaw: -0.9, pitch: 0.45, away: 2.4 };
  const on = { turning: !matchMedia("(prefers-reduced-motion: reduce)").matches, seen: true, camera: false };
  let { yaw, pitch, away } = start, now = 0, shown = true, last = 0;
  let dots = [], lines = [], words = [];

  function build() {
    const style = getComputedStyle(canvas), hue = name => style.getPropertyValue("--" + name).trim();
    const moment = scene.moments[now], piece = scene.size / 12, dot = scene.size / 130;
    dots = []; lines = []; words = [];
    const point = (xyz, i, colour, size) => dots.push({ x: xyz[i], y: xyz[i + 1], z: xyz[i + 2], colour, size });
    const line = (a, b, colour, width = 1) => {  // in pieces, so that each is before or behind the points
      const n = Math.max(1, Math.ceil(Math.hypot(...a.map((x, i) => x - b[i])) / piece));
      const at = k => a.map((x, i) => x + (b[i] - x) * k / n);
      for (let k = 0; k < n; k++) lines.push({ a: at(k), b: at(k + 1), colour, width });
    };
    const word = (text, at, colour) => words.push({ text, at, colour });

    const cell = scene.cell, edge = i => [-1, 1].map(s => Math.round((scene.middle[i] + s * scene.size) / cell));
    const [[x0, x1], [y0, y1]] = [edge(0), edge(1)];
    for (let i = x0; i <= x1; i++) line([i * cell, y0 * cell, 0], [i * cell, y1 * cell, 0], hue("rule"));
    for (let i = y0; i <= y1; i++) line([x0 * cell, i * cell, 0], [x1 * cell, i * cell, 0], hue("rule"));
    ["#d1383d", "#2a9d3f", "#3b7ddd"].forEach((colour, i) => {
      const end = [0, 1, 2].map(j => i === j ? cell : 0);
      line([0, 0, 0], end, colour, 3);
      word("xyz"[i], end, colour);
    });
    if (scene.box) for (let i = 0; i < 3; i++) for (let k = 0; k < 4; k++) {
      const corner = side => [0, 1, 2].map(j => scene.box[j === i ? side : k >> ((j - i + 2) % 3) & 1][j]);
      line(corner(0), corner(1), hue("muted"), 1.5);
    }
    const path = metres(scene.path), tip = i => [path[i], path[i + 1], path[i + 2]];
    for (let i = 3; i < path.length; i += 3) line(tip(i - 3), tip(i), hue("ok"), 2.5);
    if (moment.tip) { point(moment.tip, 0, hue("ok"), 2.5 * dot); word("gripper", moment.tip, hue("ok")); }
    moment.cameras.forEach((camera, c) => {
      const own = hue(hues[c % 4]), xyz = metres(camera.xyz), rgb = bytes(camera.rgb), [a, b, d, e] = camera.corners;
      for (let i = 0; i < xyz.length; i += 3) point(xyz, i, on.camera ? own : `rgb(${rgb[i]},${rgb[i + 1]},${rgb[i + 2]})`, dot);
      camera.corners.forEach((corner, i) => { line(camera.eye, corner, own, 1.5); line(corner, camera.corners[(i + 1) % 4], own, 1.5); });
      const top = a.map((x, i) => (x + b[i]) / 2 + (x + b[i] - d[i] - e[i]) * 0.15);  // a roof on the side that is up in the picture
      line(a, top, own, 1.5); line(b, top, own, 1.5);
      word(camera.name, camera.eye, own);
    });
    if (on.seen) for (const text of moment.seen) {
      const xyz = metres(text);
      for (let i = 0; i < xyz.length; i += 3) point(xyz, i, hue("bad"), 1.3 * dot);
    }
    draw();
  }

  function draw() {
    const ratio = devicePixelRatio || 1, w = canvas.clientWidth, h = canvas.clientHeight;
    if (canvas.width !== Math.round(w * ratio) || canvas.height !== Math.round(h * ratio)) {
      canvas.width = Math.round(w * ratio);
      canvas.height = Math.round(h * ratio);
    }
    pen.setTransform(ratio, 0, 0, ratio, 0, 0);
    pen.clearRect(0, 0, w, h);
    const [cx, cy, cz] = scene.middle, s = Math.sin(yaw), c = Math.cos(yaw), sp = Math.sin(pitch), cp = Math.cos(pitch);
    const far = away * scene.size, focal = 1.3 * Math.min(w, h), nearest = 0.05 * scene.size;
    const see = (x, y, z) => {  // column and row on the screen, and how far ahead
      x -= cx; y -= cy; z -= cz;
      const along = c * x + s * y, depth = far - cp * along - sp * z;
      return [w / 2 + focal * (c * y - s * x) / depth, h / 2 - focal * (cp * z - sp * along) / depth, depth];
    };
    const jobs = dots.map(d => [...see(d.x, d.y, d.z), d]);
    for (const l of lines) {
      const a = see(...l.a), b = see(...l.b);
      if (Math.min(a[2], b[2]) > nearest) jobs.push([a[0], a[1], (a[2] + b[2]) / 2, l, b]);
    }
    jobs.sort((a, b) => b[2] - a[2]);
    for (const [x, y, depth, job, b] of jobs) {
      if (b) {
        pen.strokeStyle = job.colour; pen.lineWidth = job.width;
        pen.beginPath(); pen.moveTo(x, y); pen.lineTo(b[0], b[1]); pen.stroke();
      } else if (depth > nearest) {
        const side = Math.max(1.5, focal * job.size / depth);
        pen.fillStyle = job.colour; pen.fillRect(x - side / 2, y - side / 2, side, side);
      }
    }
    const style = getComputedStyle(canvas);
    pen.font = `600 13px ${style.fontFamily}`; pen.lineJoin = "round"; pen.lineWidth = 4;
    const say = (text, x, y, colour) => {
      pen.strokeStyle = style.getPropertyValue("--card"); pen.strokeText(text, x, y);
      pen.fillStyle = colour; pen.fillText(text, x, y);
    };
    for (const { text, at, colour } of words) {
      const [x, y, depth] = see(...at);
      if (depth > nearest) say(text, Math.min(x + 6, w - 4 - pen.measureText(text).width), y - 6, colour);
    }
    say(`grid ${scene.cell} m, at z = 0`, 12, h - 12, style.getPropertyValue("--muted"));
  }

  function tick(time) {
    if (!on.turning) return;
    if (shown && time - last > 40) {
      yaw += Math.min(time - last, 100) * 1.2e-4;
      last = time;
      draw();
    }
    requestAnimationFrame(tick);
  }
  function flip(name, to) {
    const was = on[name];
    on[name] = to;
    figure.querySelector(`[data-flip=${name}]`)?.setAttribute("aria-pressed", to);
    if (name === "turning" && to && !was) requestAnimationFrame(tick);
  }
  function move(dyaw, dpitch, times = 1) {
    flip("turning", false);
    yaw += dyaw;
    pitch = Math.max(-1.57, Math.min(1.57, pitch + dpitch));
    away = Math.max(0.15, Math.min(12, away * times));
    draw();
  }

  canvas.onpointerdown = e => { canvas.setPointerCapture(e.pointerId); canvas.focus({ preventScroll: true }); move(0, 0); };
  canvas.onpointermove = e => { if (e.buttons) move(-e.movementX / 150, e.movementY / 150); };
  canvas.addEventListener("wheel", e => {  // only once it has the focus: a page that is scrolled past it goes on
    if (document.activeElement !== canvas) return;
    e.preventDefault();
    move(0, 0, Math.exp(Math.max(-60, Math.min(60, e.deltaY)) / 400));
  }, { passive: false });
  const keys = {
    ArrowLeft: () => move(-0.1, 0), ArrowRight: () => move(0.1, 0), ArrowUp: () => move(0, 0.1), ArrowDown: () => move(0, -0.1),
    "+": () => move(0, 0, 0.9), "=": () => move(0, 0, 0.9), "-": () => move(0, 0, 1 / 0.9),
    Home: () => { ({ yaw, pitch, away } = start); move(0, 0); }, " ": () => flip("turning", !on.turning),
  };
  canvas.onkeydown = e => { if (keys[e.key] && !e.ctrlKey && !e.metaKey && !e.altKey) { e.preventDefault(); keys[e.key](); } };
  figure.onclick = e => {
    const { moment, flip: name, from } = e.target.dataset;
    if (moment) {
      now = Number(moment);
      for (const one of figure.querySelectorAll("[data-moment]")) one.setAttribute("aria-pressed", one === e.target);
    }
    if (name) flip(name, !on[name]);
    if (from) { [yaw, pitch] = from.split(" ").map(Number); move(0, 0); }
    if (moment || name) build();
  };
  new IntersectionObserver(seen => { shown = seen[0].isIntersecting; }).observe(canvas);
  new ResizeObserver(draw).observe(canvas);
  matchMedia("(prefers-color-scheme: dark)").onchange = build;
  flip("turning", on.turning);
  build();
  requestAnimationFrame(tick);
}
