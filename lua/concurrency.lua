--[[
concurrency: counts what is under way at once, by the word of each worker; at most Q are.

key       hash {worker = word}: worker = its name, two numbers below 2^32 as 10 digits each; word =
          16 digits: microsecond until which it holds, 13 digits: serial, below 2^40, and how many
          are under way there; absence = none
limit[2]  quota   how many may be under way at once                     1 .. 10^6
limit[3]  lease   microseconds that a worker's word holds               10^6 ..

look(counter, now_us) reads the counter of a key and a limit; its room = places left
wait(counter, units) returns a second, since nobody knows when a place is given up; -1 for never
reset(counter, units) returns microseconds until no word holds any longer
charge(counter, units) takes units without asking; returns whether a debt was cut
give_back(counter, units) gives up places of the worker's
renew(counter, units) sets how many are under way, where the told serial is the word's or there is
no word; returns 1 where it is another, so that the word stays and just holds for longer; else 0

Who asks is told with the action: `charged_us` holds the first number of the name, `charged_level`
the second; beyond 2^32 they hold the lower 20 and the upper 20 bits of the serial for a renewal.
Charges and give-backs raise the serial, so that a worker knows what the word has counted, and a
renewal that was overtaken takes nothing back. A new word begins with the time as its serial, which
is beyond all that were before it.
A word whose time has passed counts no more: its worker is dead, or renews it before it asks again.
A time further ahead than a lease is that of a broken clock, and is taken as now and a lease.

Exact because it only adds whole numbers below 2^53, and takes remainders of such.
Expiry only collects garbage: words that hold no longer and no words are the same.
]]
local ceil, floor, format, max, min, sub = math.ceil, math.floor, string.format, math.max, math.min,
  string.sub
local SECOND = 1000000
local HALF = 4294967296 -- 2^32
local SERIALS = 1099511627776 -- 2^40
local MOST = 4398046511104 -- 2^42

local function look(counter, now_us)
  local first, second = counter.charged_us % HALF, counter.charged_level % HALF
  local name = format('%010.0f%010.0f', first, second)
  local words = redis.call('HGETALL', counter.key)
  local latest = now_us + counter.limit[3]
  local sum, last, own, serial, stale, broken = 0, now_us, false, now_us % SERIALS, false, false
  for i = 1, #words, 2 do
    local word = words[i + 1]
    local ends, count = sub(word, 1, 16) + 0, sub(word, 30) + 0
    if ends > latest then
      ends, broken = latest, true
    end
    if ends <= now_us then
      stale = true
    else
      sum = sum + count
      last = max(last, ends)
      if words[i] == name then
        own, serial = count, sub(word, 17, 29) + 0
      end
    end
  end
  counter.room = counter.limit[2] - sum
  counter.at_us = now_us
  counter.level = serial
  counter.unit = 1
  counter.broken = broken
  counter.name = name
  counter.words = words
  counter.own = own
  counter.last = last
  counter.stale = stale
  counter.now_us = now_us
end

local function wait(counter, units)
  return units > counter.limit[2] and -1 or SECOND
end

local function reset(counter, units)
  return units > 0 and counter.limit[3] or counter.last - counter.now_us
end

local function put(counter, name, ends, serial, count)
  redis.call('HSET', counter.key, name, format('%016.0f%013.0f%.0f', ends, serial % SERIALS, count))
end

-- Writes the worker's word, and tidies up the others: what holds no longer goes.
local function write(counter, count, serial)
  local key, ends = counter.key, counter.now_us + counter.limit[3]
  local words = counter.words
  if counter.stale or counter.broken then
    for i = 1, #words, 2 do
      local name, word = words[i], words[i + 1]
      local other = sub(word, 1, 16) + 0
      if other <= counter.now_us then
        redis.call('HDEL', key, name)
      elseif other > ends then
        put(counter, name, ends, sub(word, 17, 29) + 0, sub(word, 30) + 0)
      end
    end
  end
  if count == 0 then
    redis.call('HDEL', key, counter.name)
  elseif count then
    put(counter, counter.name, ends, serial, count)
  end
  redis.call('PEXPIRE', key, ceil(counter.limit[3] / 1000) + 2000)
end

-- Without units, and with a clock that was broken, it only sets the words to the present.
local function charge(counter, units)
  local count = (counter.own or 0) + units
  write(counter, units > 0 and min(MOST, count), counter.level + units)
  return count > MOST
end

local function give_back(counter, units)
  if counter.own then
    write(counter, max(0, counter.own - units), counter.level + units)
  end
end

local function renew(counter, units)
  local told = floor(counter.charged_us / HALF) + floor(counter.charged_level / HALF) * 1048576
  if counter.own and told ~= counter.level then
    write(counter, counter.own, counter.level)
    return 1
  end
  if counter.own or units > 0 then
    write(counter, units, counter.level)
  end
  return 0
end

return {
  look = look, wait = wait, reset = reset, charge = charge, give_back = give_back, renew = renew,
}
