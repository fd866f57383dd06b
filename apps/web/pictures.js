// Pictures that were dropped or chosen, and frames of the camera, as RGBA pixels.

const MOST_PIXELS = 4096 * 4096; // what Safari on phones draws; more it leaves blank without a word

const canvas = document.createElement("canvas");
const context = canvas.getContext("2d", {willReadFrequently: true});

/** The pixels of an image file, upright as its EXIF says. */
export async function readPicture(file) {
  let bitmap;
  try {
    bitmap = await createImageBitmap(file, {colorSpaceConversion: "none", premultiplyAlpha: "none"});
  } catch {
    throw new Error(`${file.name ?? "this"} is no image that this browser reads: give a PNG or JPEG`);
  }
  const pixels = pixelsOf(bitmap, bitmap.width, bitmap.height);
  bitmap.close();
  return pixels;
}

function pixelsOf(source, width, height) {
  const scale = Math.min(1, Math.sqrt(MOST_PIXELS / (width * height)));
  canvas.width = Math.max(1, Math.floor(width * scale));
  canvas.height = Math.max(1, Math.floor(height * scale));
  context.imageSmoothingQuality = "high";
  context.drawImage(source, 0, 0, canvas.width, canvas.height);
  return context.getImageData(0, 0, canvas.width, canvas.height);
}

/** The camera at the back, where there is one. */
export class Camera {
  constructor() {
    this.video = Object.assign(document.createElement("video"), {muted: true, playsInline: true});
    this.stream = null;
  }

  static get isThere() {
    return Boolean(navigator.mediaDevices?.getUserMedia); // https and local addresses only
  }

  get isOn() {
    return this.stream !== null;
  }

  async start() {
    try {
      const video = {facingMode: "environment", width: {ideal: 640}};
      this.stream = await navigator.mediaDevices.getUserMedia({video});
      this.video.srcObject = this.stream;
      await this.video.play();
    } catch (error) {
      this.stop();
      throw new Error(`no camera (${error.message}): allow this page to use it, or choose an image`);
    }
  }

  stop() {
    for (const track of this.stream?.getTracks() ?? []) track.stop();
    this.stream = this.video.srcObject = null;
  }

  /** The pixels of now. */
  frame() {
    return pixelsOf(this.video, this.video.videoWidth, this.video.videoHeight);
  }
}
