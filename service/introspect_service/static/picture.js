// The picture that is asked about: dropped, pasted, chosen, or a sample.

import { byId, el } from "./dom.js";

const TYPES = ["image/png", "image/jpeg", "image/webp"];
const MOST_BYTES = 8_000_000;

// Scenes of real handwriting that the embedded model never saw, and what it was taught to be asked; the photograph is
// something it knows nothing of.
const SAMPLES = [
  ["scene-1.png", "A clear scene", ["what digit is at row 2 column 3 ?", "what color is the 9 ?", "is there a 7 ?", "how many red ?", "describe everything"]],
  ["scene-2.png", "Sevens that are not blue, as most were in training", ["what color is at row 1 column 1 ?", "where is the red 7 ?", "is there a blue 7 ?", "describe everything"]],
  ["scene-3.png", "Faint ink and much noise", ["what digit is at row 2 column 3 ?", "what color is the 6 ?", "how many red ?", "describe everything"]],
  ["scene-4.png", "A covered cell", ["what digit is at row 1 column 3 ?", "is there a 4 ?", "what is the sum of row 3 ?", "describe everything"]],
  ["photo-flower.jpg", "A photograph, outside what the model knows", ["what color is at row 1 column 1 ?", "what is in this picture ?", "describe everything"]],
];

export class Picture {
  constructor(changed, refused) {
    this.uri = null;
    this.changed = changed;
    this.refused = refused;
    const drop = byId("drop");
    byId("file").addEventListener("change", (event) => this.take(event.target.files[0]));
    for (const kind of ["dragover", "dragenter"]) {
      drop.addEventListener(kind, (event) => {
        event.preventDefault();
        drop.classList.add("over");
      });
    }
    drop.addEventListener("dragleave", () => drop.classList.remove("over"));
    drop.addEventListener("drop", (event) => {
      event.preventDefault();
      drop.classList.remove("over");
      this.take(event.dataTransfer.files[0]);
    });
    document.addEventListener("paste", (event) => {
      const file = [...event.clipboardData.files].find((each) => each.type.startsWith("image/"));
      if (file) this.take(file);
    });
  }

  take(file) {
    if (!file) return;
    this.press(null);
    if (!TYPES.includes(file.type)) return this.refused("Give a png, jpeg or webp picture.");
    if (file.size > MOST_BYTES) return this.refused(`Give a picture of at most ${MOST_BYTES / 1e6} MB.`);
    const reader = new FileReader();
    reader.addEventListener("load", () => this.set(reader.result, []));
    reader.addEventListener("error", () => this.refused("The picture cannot be read."));
    reader.readAsDataURL(file);
  }

  set(uri, questions) {
    this.uri = uri;
    byId("picture").src = uri;
    byId("frame").hidden = false;
    this.changed(questions);
  }

  press(chosen) {
    for (const button of byId("samples").querySelectorAll("button")) button.setAttribute("aria-pressed", String(button === chosen));
  }

  offerSamples() {
    const items = SAMPLES.map(([name, title, questions]) => {
      const thumbnail = el("img", { src: `/page/samples/${name}`, alt: title });
      const button = el("button", { type: "button", title, "aria-pressed": "false" }, thumbnail);
      const item = el("li", {}, button);
      button.addEventListener("click", async () => {
        const blob = await (await fetch(thumbnail.src)).blob();
        const reader = new FileReader();
        reader.addEventListener("load", () => {
          this.press(button);
          this.set(reader.result, questions);
        });
        reader.readAsDataURL(blob);
      });
      thumbnail.addEventListener("error", () => item.remove()); // an installation without the samples
      return item;
    });
    byId("samples").replaceChildren(...items);
  }
}
