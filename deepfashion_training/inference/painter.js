// The canvas on which the mask is painted, over the photo. Gradio runs this once, with `element`, `props` and `watch`.
// The server sets props.value to JSON {person, photo, mask} (pictures as data URIs, the mask opaque where it is
// painted); after each stroke the value becomes {person, mask}. What is shown is what is sent.
const canvas = element.querySelector("canvas");
const photo = element.querySelector("img");
const hint = element.querySelector("p");
const eraser = element.querySelector("[value=erase]");
const slider = element.querySelector("[type=range]");
const brush = canvas.getContext("2d");
const HEIGHT = 500; // of the photo on the page, at most
let person = "";
let last = null; // the pointer's last place during a stroke
let loads = 0;

function send() {
  props.value = JSON.stringify({ person, mask: canvas.toDataURL("image/png") });
}

function stroke(event) {
  const box = canvas.getBoundingClientRect();
  const scale = canvas.width / box.width;
  const here = { x: (event.clientX - box.left) * scale, y: (event.clientY - box.top) * scale };
  last ??= here;
  brush.globalCompositeOperation = eraser.checked ? "destination-out" : "source-over";
  brush.strokeStyle = "#e0218a";
  brush.lineCap = brush.lineJoin = "round";
  brush.lineWidth = slider.value * scale;
  brush.beginPath();
  brush.moveTo(last.x, last.y);
  brush.lineTo(here.x, here.y + 0.01); // a line without length draws no dot everywhere
  brush.stroke();
  last = here;
}

canvas.addEventListener("pointerdown", (event) => {
  if (event.button !== 0) return;
  canvas.setPointerCapture(event.pointerId);
  stroke(event);
});
canvas.addEventListener("pointermove", (event) => last && stroke(event));
canvas.addEventListener("lostpointercapture", () => {
  last = null;
  send();
});
element.querySelector("button").addEventListener("click", () => {
  brush.clearRect(0, 0, canvas.width, canvas.height);
  send();
});

async function load() {
  photo.parentElement.hidden = !props.value;
  hint.hidden = Boolean(props.value);
  const given = props.value ? JSON.parse(props.value) : {};
  if (!given.photo) return;
  const mine = ++loads;
  const mask = new Image();
  mask.src = given.mask;
  await mask.decode();
  if (mine !== loads) return; // another one was given meanwhile
  photo.src = given.photo;
  person = given.person;
  canvas.width = mask.naturalWidth;
  canvas.height = mask.naturalHeight;
  photo.parentElement.style.width = `min(100%, ${Math.round((HEIGHT * canvas.width) / canvas.height)}px)`;
  brush.globalCompositeOperation = "source-over";
  brush.drawImage(mask, 0, 0);
  canvas.dataset.loads = String(loads);
}

watch("value", load);
load();
