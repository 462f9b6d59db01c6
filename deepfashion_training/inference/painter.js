// The canvas on which the mask is painted. Gradio runs this once, with `element`, `props` and `watch`.
// The server sets props.value to JSON {person, photo, mask} (pictures as data URIs, the mask opaque where it is
// painted); after each stroke the value becomes {person, mask}. What is shown is what is sent.
const canvas = element.querySelector("canvas");
const hint = element.querySelector("p");
const slider = element.querySelector("input");
const buttons = [...element.querySelectorAll("button")];
const mask = document.createElement("canvas");
const tint = document.createElement("canvas");
const UNDO_STEPS = 12;
const HEIGHT = 500; // of the canvas on the page, at most
let photo = null;
let person = "";
let tool = "paint";
let last = null; // the pointer's last place during a stroke
let earlier = [];
let loads = 0;

function show() {
  const tinted = tint.getContext("2d");
  tinted.globalCompositeOperation = "copy";
  tinted.drawImage(mask, 0, 0);
  tinted.globalCompositeOperation = "source-in";
  tinted.fillStyle = "#e0218a";
  tinted.fillRect(0, 0, tint.width, tint.height);
  const shown = canvas.getContext("2d");
  shown.globalAlpha = 1;
  shown.drawImage(photo, 0, 0, canvas.width, canvas.height);
  shown.globalAlpha = 0.55;
  shown.drawImage(tint, 0, 0);
}

function send() {
  props.value = JSON.stringify({ person, mask: mask.toDataURL("image/png") });
}

function remember() {
  earlier.push(mask.getContext("2d").getImageData(0, 0, mask.width, mask.height));
  earlier = earlier.slice(-UNDO_STEPS);
}

function place(event) {
  const box = canvas.getBoundingClientRect();
  const scale = canvas.width / box.width;
  return { x: (event.clientX - box.left) * scale, y: (event.clientY - box.top) * scale, scale };
}

function stroke(from, to) {
  const brush = mask.getContext("2d");
  brush.globalCompositeOperation = tool === "paint" ? "source-over" : "destination-out";
  brush.strokeStyle = "#fff";
  brush.lineCap = brush.lineJoin = "round";
  brush.lineWidth = slider.value * to.scale;
  brush.beginPath();
  brush.moveTo(from.x, from.y);
  brush.lineTo(to.x, to.y + 0.01); // a line without length draws no dot everywhere
  brush.stroke();
  show();
}

canvas.addEventListener("pointerdown", (event) => {
  if (!photo || event.button !== 0) return;
  canvas.setPointerCapture(event.pointerId);
  remember();
  last = place(event);
  stroke(last, last);
});
canvas.addEventListener("pointermove", (event) => {
  if (!last) return;
  const here = place(event);
  stroke(last, here);
  last = here;
});
for (const end of ["pointerup", "pointercancel"]) {
  canvas.addEventListener(end, () => {
    if (!last) return;
    last = null;
    send();
  });
}

for (const button of buttons) {
  button.addEventListener("click", () => {
    if (button.dataset.tool) {
      tool = button.dataset.tool;
      for (const one of buttons) {
        if (one.dataset.tool) one.setAttribute("aria-pressed", String(one === button));
      }
      return;
    }
    const pixels = mask.getContext("2d");
    if (button.dataset.do === "undo") {
      if (!earlier.length) return;
      pixels.putImageData(earlier.pop(), 0, 0);
    } else {
      remember();
      pixels.clearRect(0, 0, mask.width, mask.height);
    }
    show();
    send();
  });
}

function show_photo(there) {
  hint.hidden = there;
  canvas.hidden = !there;
  for (const one of [...buttons, slider]) one.disabled = !there;
}

function picture(uri) {
  return new Promise((done, failed) => {
    const image = new Image();
    image.onload = () => done(image);
    image.onerror = failed;
    image.src = uri;
  });
}

async function load() {
  const given = props.value ? JSON.parse(props.value) : {};
  if (!props.value) show_photo(false); // the photo was taken away
  if (!given.photo) return;
  const mine = ++loads;
  const [person_photo, painted] = await Promise.all([picture(given.photo), picture(given.mask)]);
  if (mine !== loads) return; // another one was given meanwhile
  for (const one of [canvas, mask, tint]) {
    one.width = person_photo.naturalWidth;
    one.height = person_photo.naturalHeight;
  }
  // As large as fits, in its own proportions: a stroke's place follows from the size that is shown.
  canvas.style.width = `min(100%, ${Math.round((HEIGHT * canvas.width) / canvas.height)}px)`;
  photo = person_photo;
  person = given.person;
  earlier = [];
  last = null;
  mask.getContext("2d").drawImage(painted, 0, 0);
  show();
  show_photo(true);
  canvas.dataset.loads = String(loads);
}

watch("value", load);
load();
