// rate-limiter-flexible on ioredis, driven as the Python contestants are.
//
// node node_peer.js FOLDER PORT PIPELINE: the packages are those of FOLDER/node_modules; PIPELINE
// is 1 for ioredis's enableAutoPipelining. Reads one JSON object a line from standard input, {quota,
// clients, concurrency, seconds}, and answers each with a line: {decisions, passed, seconds, cpu,
// latencies: {p50, p99}} in seconds, cpu seconds and microseconds.
'use strict';

const [folder, port, pipeline] = process.argv.slice(2);
const load = require('node:module').createRequire(`${folder}/`);
const { RateLimiterRedis } = load('rate-limiter-flexible');
const Redis = load('ioredis');

const client = new Redis({ host: '127.0.0.1', port, enableAutoPipelining: pipeline === '1' });
const limiters = new Map();

function limiterOf(quota) {
  if (!limiters.has(quota)) {
    limiters.set(quota, new RateLimiterRedis({
      storeClient: client, keyPrefix: `node${pipeline}:${quota}`, points: quota, duration: 86400,
    }));
  }
  return limiters.get(quota);
}

async function drive({ quota, clients, concurrency, seconds }) {
  const limiter = limiterOf(quota);
  const latencies = [];
  let passed = 0;
  const cpu = process.cpuUsage();
  const start = performance.now();
  const until = start + 1000 * seconds;
  async function work(first) {
    let before = performance.now();
    for (let i = first; ; i += concurrency) {
      try {
        await limiter.consume(clients[i % clients.length]);
        passed += 1;
      } catch (refusal) {
        if (refusal instanceof Error) throw refusal;
      }
      const now = performance.now();
      latencies.push(now - before);
      before = now;
      if (now > until) return;
    }
  }
  await Promise.all(Array.from({ length: concurrency }, (_, i) => work(i)));
  const elapsed = performance.now() - start;
  const used = process.cpuUsage(cpu);
  latencies.sort((a, b) => a - b);
  const at = (part) => 1000 * latencies[Math.floor(part * (latencies.length - 1))];
  return {
    decisions: latencies.length, passed, seconds: elapsed / 1000,
    cpu: (used.user + used.system) / 1e6, p50: at(0.5), p99: at(0.99),
  };
}

async function main() {
  const lines = require('node:readline').createInterface({ input: process.stdin });
  for await (const line of lines) {
    process.stdout.write(`${JSON.stringify(await drive(JSON.parse(line)))}\n`);
  }
  client.disconnect();
}

main().catch((error) => {
  process.stderr.write(`${error.stack}\n`);
  process.exit(1);
});
