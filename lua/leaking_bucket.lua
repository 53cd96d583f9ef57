--[[
leaking_bucket: a queue of B places that leaks Q per W at an even pace; a request waits its turn.

key       numbers {t, v}: t = tick of the last charge, v = units queued then; absence means empty
limit[2]  capacity  places in the queue                                 1 .. 2^53-1
limit[3]  refill    units leaked per tick: Q / gcd(Q, W in ticks)       1 ..
limit[4]  token     units in one place: W in ticks / gcd                1 ..
limit[5]  tick      microseconds per tick                               1 ..
limit[6]  window    W in ticks                                          1 ..

look(counter, now_us) reads the counter of a key and a limit; its room = free places now
wait(counter, units) returns microseconds until units places are free, -1 if they never can be
delay(counter, taken) returns microseconds until the turn of what is queued next, behind taken more
reset(counter, units) returns microseconds until empty, once units more are queued
charge(counter, units) queues units without asking; returns whether a debt was cut
give_back(counter, units, at_us, level) returns to the key what of a charge has not leaked yet

Exact because time is counted in ticks and places in units of which a tick leaks a whole number;
capacity * token < 2^53 (ratelimit/limits.py refuses the rest), and floor(a / b) of whole numbers
below 2^53 is exact in doubles.
Expiry only collects garbage: a key that is gone and an empty queue are the same.
Source: ITU-T I.371 (the leaky bucket as a queue); A. Tanenbaum, "Computer Networks", 5.4.
]]
local read, write = ...
local floor, ceil, max, min = math.floor, math.ceil, math.max, math.min
local MOST = 9007199254740991 -- 2^53 - 1

local function look(counter, now_us)
  local limit = counter.limit
  local refill, token, tick = limit[3], limit[4], limit[5]
  local now = (now_us - now_us % tick) / tick
  local at, queued, broken = now, 0, false
  local last, then_queued = read(counter.key)
  if last then
    queued = then_queued
    if last - now > limit[6] then
      broken = true
    elseif last < now then
      local passed = now - last
      queued = passed < ceil(queued / refill) and queued - passed * refill or 0
    else
      at = last
    end
  end
  counter.room = floor((limit[2] * token - queued) / token)
  counter.at_us = at * tick
  counter.level = queued
  counter.unit = token
  counter.broken = broken
  counter.at = at
  counter.now_us = now_us
end

-- The instant `ticks` after the counter's, seen from the caller's now.
local function until_us(counter, ticks)
  return (counter.at + ticks) * counter.limit[5] - counter.now_us
end

local function wait(counter, units)
  local limit = counter.limit
  if units > limit[2] then
    return -1
  end
  local short = counter.level - (limit[2] - units) * limit[4]
  return until_us(counter, ceil(short / limit[3]))
end

-- Debt stops where paying it off would take 2^52 microseconds (142 years); no full bucket does.
local function after(counter, units)
  local limit = counter.limit
  local token = limit[4]
  local level = counter.level + units * token
  if level <= limit[2] * token then
    return level, false
  end
  local most = min(MOST, floor(4503599627370496 / limit[5]) * limit[3])
  if units > floor((most - counter.level) / token) then
    return most, true
  end
  return level, false
end

-- The level found, divided by the rate, rounded up; the tick's own length is split off, so that no
-- product passes 2^53.
local function delay(counter, taken)
  local limit = counter.limit
  local found = after(counter, taken)
  if found == 0 then
    return 0
  end
  local ticks = floor(found / limit[3])
  local rest = ceil((found - ticks * limit[3]) * limit[5] / limit[3])
  local ahead = max(0, counter.at - floor(counter.now_us / limit[5]))
  return (ahead + ticks) * limit[5] + rest
end

local function reset(counter, units)
  local queued = after(counter, units)
  return queued == 0 and 0 or until_us(counter, ceil(queued / counter.limit[3]))
end

local function charge(counter, units)
  local queued, cut = after(counter, units)
  write(counter.key, until_us(counter, ceil(queued / counter.limit[3])), counter.at, queued)
  return cut
end

-- A charge leaks last of all that was queued when it was made (level, its own units included),
-- so what has not leaked yet is what is left of that level, and at most the charge.
local function give_back(counter, units, at_us, level)
  local limit = counter.limit
  local passed = max(0, counter.at - floor(at_us / limit[5]))
  local left = passed < ceil(level / limit[3]) and level - passed * limit[3] or 0
  local back = min(units * limit[4], left, counter.level)
  if back <= 0 then
    return
  end
  counter.level = counter.level - back
  if counter.level == 0 then
    redis.call('DEL', counter.key)
  else
    charge(counter, 0)
  end
end

return {
  look = look,
  wait = wait,
  delay = delay,
  reset = reset,
  charge = charge,
  give_back = give_back,
}
