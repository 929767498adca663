// A server of HTTP in one thread: PORT REDIS. Each request asks Redis twice, one after the other, over one connection of all.
"use strict";

const http = require("http");
const net = require("net");

const [port, redisPort] = process.argv.slice(2).map(Number);
const waiting = [];
let rest = "";
const redis = net.connect(redisPort, "127.0.0.1");
redis.setNoDelay(true);
redis.on("data", (data) => {
  rest += data;
  // Every answer is "no such key".
  while (rest.startsWith("$-1\r\n")) {
    rest = rest.slice(5);
    waiting.shift()();
  }
});

function get(key) {
  return new Promise((resolve) => {
    waiting.push(resolve);
    redis.write(`*2\r\n$3\r\nGET\r\n$${key.length}\r\n${key}\r\n`);
  });
}

const server = http.createServer(async (request, response) => {
  const number = request.url.split("/").pop();
  await get(`t${number}:a`);
  await get(`t${number}:b`);
  response.end("ok");
});
server.listen(port, "127.0.0.1", 256);
