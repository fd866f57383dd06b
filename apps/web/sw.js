// Keeps what the page is made of, and answers with it where there is no network. What the network has is newer and
// goes first, so a new bundle or a new version of the page is there on the next load. The bundle's files are not
// kept here but by the page, once it has checked them (offline.js).

const NAME = `maestro-edge-page ${registration.scope}`; // other apps may share the origin
const CACHE = `${NAME} 1`; // another number when what is kept changes its form: the old one is deleted
const PAGE = [
  "./", "bundle.js", "chart.js", "classifier.js", "icon.svg", "main.js", "manifest.webmanifest", "offline.js",
  "pictures.js", "prepare.js", "selection.js", "sha256.js", "statistics.js", "style.css", "view.js",
];
const PATIENCE_MS = 4000;

self.addEventListener("install", (event) => event.waitUntil(install()));
self.addEventListener("activate", (event) => event.waitUntil(activate()));
self.addEventListener("fetch", (event) => {
  const {method, url} = event.request;
  const path = url.slice(registration.scope.length);
  const isBundleFile = path.startsWith("model/") && path !== "model/manifest.json";
  if (method === "GET" && url.startsWith(registration.scope) && !isBundleFile) event.respondWith(answer(event));
});

async function install() {
  const cache = await caches.open(CACHE);
  await cache.addAll(PAGE.map((path) => new Request(path, {cache: "no-cache"})));
  await skipWaiting();
}

async function activate() {
  for (const name of await caches.keys()) {
    if (name.startsWith(NAME) && name !== CACHE) await caches.delete(name);
  }
  await clients.claim();
}

async function answer(event) {
  const cache = await caches.open(CACHE);
  const old = await cache.match(event.request, {ignoreSearch: true, ignoreVary: true});
  const fresh = fetch(event.request).then((found) => {
    const copy = found.status === 200 && !found.redirected ? found.clone() : null;
    // Where the disk is full the page works all the same.
    if (copy) event.waitUntil(cache.put(event.request, copy).catch(() => null));
    return found;
  });
  if (!old) return fresh;
  event.waitUntil(fresh.catch(() => null)); // a slow answer is kept for the next time
  const late = new Promise((resolve) => setTimeout(resolve, PATIENCE_MS, old));
  return Promise.race([fresh.catch(() => old), late]);
}
