// One call from the page in a headless Firefox. Prints what came of it as JSON.
//
//     node firefox_caller.mjs PUPPETEER FIREFOX ADDRESS FOLDER
//
// PUPPETEER: a folder whose node_modules has puppeteer-core. FOLDER: where the three files of the call are put.
// Once the agent is heard, it prints a line. Once it reads one, it ends the call.

import { once } from "node:events";
import { readdir } from "node:fs/promises";
import { createRequire } from "node:module";
import process from "node:process";
import { setTimeout as sleep } from "node:timers/promises";

const [puppeteer, executablePath, address, folder] = process.argv.slice(2);
const MOST_MS = 120000; // within which anything happens, on a busy machine too
const HEARD = 1; // seconds of the agent

const browser = await createRequire(`${puppeteer}/`)("puppeteer-core").launch({
  browser: "firefox",
  executablePath,
  timeout: MOST_MS,
  extraPrefsFirefox: {
    "media.navigator.permission.disabled": true, // Nobody is there to allow the microphone.
    "browser.download.folderList": 2, // the folder of the next line
    "browser.download.dir": folder,
  },
});
const page = await browser.newPage();
const problems = [];
try {
  console.log(JSON.stringify(await holdCall()));
} catch (error) {
  console.error(problems, await page.$eval("body", (body) => body.innerText));
  throw error;
} finally {
  await browser.close();
}
process.exit(0);

async function holdCall() {
  page.setDefaultTimeout(MOST_MS);
  page.on("console", (said) => ["error", "warn"].includes(said.type()) && problems.push(said.text()));
  page.on("pageerror", (why) => problems.push(String(why)));
  const click = (selector) => page.locator(selector).click();
  const texts = (selector) => page.$$eval(selector, (all) => all.map((each) => each.textContent));

  await page.goto(address);
  for (const processor of ["echo", "noise"]) await click(`#${processor}`); // The sound is compared as it was spoken.
  const hasEncoder = await page.evaluate("'AudioEncoder' in globalThis");
  await click("#start");
  const isHeard = (least) => parseFloat(document.querySelector("[data-name=Played]")?.textContent) >= least;
  await page.waitForFunction(isHeard, {}, HEARD);
  console.log("heard");
  await once(process.stdin, "data");
  await page.waitForSelector("#captions li");
  await click("#hang-up");
  for (const what of ["recording", "transcript", "settings"]) await click(`#save-${what}`);
  for (const ends = Date.now() + MOST_MS; !(await isSaved()); await sleep(100))
    if (Date.now() > ends) throw new Error(`the downloads have not ended: ${await readdir(folder)}`);
  const [phase] = await texts("#phase");
  const figures = await page.$$eval("#figures dd", (all) => all.map((each) => [each.dataset.name, each.textContent]));
  return { problems, hasEncoder, phase, captions: await texts("#captions span"), figures: Object.fromEntries(figures) };
}

/** Whether the three files are whole: until then, Firefox has files beside them that end in .part. */
async function isSaved() {
  const names = await readdir(folder);
  return names.length === 3 && names.every((name) => /\.(wav|json)$/.test(name));
}
