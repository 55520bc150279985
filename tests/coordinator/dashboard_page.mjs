// Usage: node dashboard_page.mjs PLAYWRIGHT_DIRECTORY CHECK URL
// Looks at the dashboard at URL in Debian's chromium. Exit code 0: CHECK holds.

import assert from 'node:assert/strict';
import { createRequire } from 'node:module';

const [playwright, check, url] = process.argv.slice(2);
const { chromium } = createRequire(import.meta.url)(playwright);

const text = (page, selector) => page.locator(selector).first().textContent();
const until = (page, selector, wanted) =>
  page.waitForFunction(
    ([where, what]) => document.querySelector(where)?.textContent.includes(what),
    [selector, wanted],
  );
const backgroundOf = (page, selector) =>
  page.locator(selector).first().evaluate((element) => getComputedStyle(element).backgroundColor);

async function ask(page, question) {
  await page.fill('#prompt', question);
  await page.press('#prompt', 'Enter');
}

/** Nothing sticks out sideways: the page does not scroll, and no table or box is cut off. */
async function assertFits(page) {
  const cut = await page.evaluate(() => {
    const wide = [document.documentElement, ...document.querySelectorAll('.job-list, .box, .log, .plot')];
    return wide.filter((each) => each.scrollWidth > each.clientWidth).map((each) => each.className || each.nodeName);
  });
  assert.deepEqual(cut, []);
}

const checks = {
  async boxes(page) {
    await until(page, '#state', 'Serving');
    assert.deepEqual(await page.locator('.box h3').allTextContents(),
      ['box-1', 'box-2', 'box-spare-with-a-name-that-is-far-too-long-for-a-phone']);
    assert.deepEqual(await page.locator('.box-stage').allTextContents(),
      ['embedding, layers 0–4', 'layers 5–9, head', 'no stage']);
    assert.deepEqual(await page.locator('.box-experts:visible').allTextContents(),
      ['memory for 25 of 100 experts, 60 % hits, 15 % copied, 25 % on the CPU',
        'memory for 25 of 100 experts, 75 % hits']);
    assert.equal(await page.locator('.box-experts').first().getAttribute('title'),
      '7 promoted, 3.00 GiB copied to the card');
    assert.deepEqual(await page.locator('.box-hop:visible').allTextContents(), ['sends on over NCCL']);
    assert.equal(await page.locator('.box-hop').first().getAttribute('title'),
      'to worker 2 (box-2): both have NCCL 2.28.9');
    assert.deepEqual(await page.locator('.tier-name').allTextContents(), ['VRAM', 'RAM', 'RAM']);
    assert.equal(await text(page, '.tier-text'), '10.5 GiB of 16.0 GiB');
    assert.equal(await text(page, '.busy b'), '75 %');
    assert.equal(await page.locator('#plot-tokens path.line-0').count(), 1);
    assert.equal(await text(page, '#plot-tokens b'), '95.5');
    const shift = await page.evaluate(() => window.layoutShift);
    assert.ok(shift < 0.02, `the layout shifted by ${shift}`);
  },

  async empty(page) {
    await until(page, '#state', 'Waiting for 2 more workers to join');
    await until(page, '.placeholder', 'waiting for 2 more workers to join');
    await until(page, '#jobs-empty', 'No job is queued or running');
    assert.ok(await page.locator('#plot-tokens .empty').isVisible());
  },

  async chat(page) {
    await ask(page, 'What is 7 + 8?');
    await until(page, '.turn-note', '4 tokens');
    assert.equal(await text(page, '.turn.user .text'), 'What is 7 + 8?');
    assert.equal(await text(page, '.thought .text'), 'Seven and eight.');
    // What a model writes is text, never markup.
    assert.equal(await text(page, '.turn.assistant > .text'), 'It is 15 <b>.');
    assert.equal(await text(page, '#send'), 'Send');
    const sent = page.waitForRequest((request) => request.url().endsWith('/v1/chat/completions'));
    await ask(page, 'And 8 + 9?');
    assert.deepEqual(JSON.parse((await sent).postData()).messages, [
      { role: 'user', content: 'What is 7 + 8?' },
      { role: 'assistant', content: '\n\nIt is 15 <b>.' },
      { role: 'user', content: 'And 8 + 9?' },
    ]);
    await page.waitForFunction(() => document.querySelectorAll('.turn').length === 4);
    await page.click('#new-chat');
    assert.equal(await page.locator('.turn').count(), 0);
  },

  async stop(page) {
    await ask(page, 'Please go on');
    await until(page, '.thought .text', 'eight.');
    assert.equal(await text(page, '#send'), 'Stop');
    await page.click('#send');
    await until(page, '.turn-note', 'Stopped');
    assert.equal(await text(page, '#send'), 'Send');
  },

  async cancel(page) {
    await until(page, '#jobs-count', '0 running, 2 queued');
    await page.click('#jobs tr:first-child button');
    await until(page, '#jobs-count', '0 running, 1 queued');
    assert.equal(await text(page, '#jobs th'), '2');
    assert.equal(await text(page, '.generated span'), '0 / 10');
  },

  async phone(page) {
    await until(page, '#state', 'Serving');
    await ask(page, `What is ${'7'.repeat(400)}?`);
    await until(page, '.turn-note', '4 tokens');
    await assertFits(page);
    assert.ok(await page.locator('#jobs button').isVisible());
  },

  async dark(page) {
    await until(page, '#state', 'Serving');
    const colors = {};
    for (const colorScheme of ['light', 'dark']) {
      await page.emulateMedia({ colorScheme });
      colors[colorScheme] = [await backgroundOf(page, 'body'), await backgroundOf(page, '.box')];
    }
    assert.notDeepEqual(colors.light, colors.dark);
    const brightness = (color) => color.match(/\d+/g).slice(0, 3).reduce((sum, each) => sum + Number(each), 0);
    assert.ok(brightness(colors.light[0]) > 600 && brightness(colors.dark[0]) < 150, JSON.stringify(colors));
  },

  async keyboard(page) {
    await until(page, '#state', 'Serving');
    const seen = [];
    for (let i = 0; i < 12; ++i) {
      await page.keyboard.press('Tab');
      seen.push(await page.evaluate(() => document.activeElement.closest('[id]')?.id));
      if (seen.at(-1) === 'plot-tokens') {
        await page.keyboard.press('ArrowLeft');
        await page.keyboard.press('ArrowLeft');
        assert.match(await text(page, '#plot-time'), /^\d+ s ago$/);
        await page.keyboard.press('Escape');
        assert.equal(await text(page, '#plot-time'), 'now');
      }
      if (seen.at(-1) === 'prompt') break;
    }
    assert.equal(seen.at(-1), 'prompt', seen.join(' '));
    await page.keyboard.type('7 + 8?');
    await page.keyboard.press('Enter');
    await until(page, '.turn-note', '4 tokens');
  },

  async lost(page, context) {
    await until(page, '#state', 'Serving');
    await context.setOffline(true);
    await until(page, '#state', 'The coordinator cannot be reached; trying again');
    assert.equal(await page.locator('.box').count(), 3);
    await context.setOffline(false);
    await until(page, '#state', 'Serving');
  },

  async key(page) {
    await until(page, '#state', 'An API key is needed');
    await page.fill('#key', 'wrong');
    await page.press('#key', 'Enter');
    await until(page, '#key-note', 'That key was refused');
    await page.fill('#key', 'open-sesame');
    await page.press('#key', 'Enter');
    await page.waitForSelector('#key-form', { state: 'hidden' });
    await ask(page, 'What is 7 + 8?');
    await until(page, '.turn-note', '4 tokens');
    assert.equal(await page.evaluate(() => localStorage.length + document.cookie.length), 0);
  },
};

// What a check brings about on purpose.
const expectedErrors = { key: /401/, lost: /ERR_INTERNET_DISCONNECTED/ };

const browser = await chromium.launch({
  executablePath: process.env.CARAVAN_CHROMIUM ?? '/usr/bin/chromium',
  // Containers rarely allow chromium's own sandbox; it shows nothing but our page.
  args: ['--no-sandbox', '--disable-dev-shm-usage'],
});
try {
  const phone = check === 'phone';
  const context = await browser.newContext({ viewport: { width: phone ? 360 : 1280, height: phone ? 740 : 900 } });
  context.setDefaultTimeout(60000);
  const page = await context.newPage();
  const errors = [];
  page.on('pageerror', (error) => errors.push(String(error)));
  page.on('console', (message) => {
    if (message.type() !== 'error') return;
    if (!expectedErrors[check]?.test(message.text())) errors.push(message.text());
  });
  page.on('request', (request) => {
    if (!request.url().startsWith(url)) errors.push(`asked elsewhere: ${request.url()}`);
  });
  await page.addInitScript(() => {
    window.layoutShift = 0;
    new PerformanceObserver((list) => {
      for (const entry of list.getEntries()) window.layoutShift += entry.value;
    }).observe({ type: 'layout-shift', buffered: true });
  });
  const response = await page.goto(url);
  assert.match(response.headers()['content-security-policy'] ?? '', /default-src 'none'/);
  await checks[check](page, context);
  assert.deepEqual(errors, []);
} finally {
  await browser.close();
}
