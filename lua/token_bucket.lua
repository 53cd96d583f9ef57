--[[
token_bucket: starts with B tokens, gains Q per W evenly up to B, and a request takes its cost.

key       numbers {t, v}: t = tick of the last charge, v = units missing from the full bucket then;
          absence means full
limit[2]  capacity  tokens in a full bucket                             1 .. 2^53-1
limit[3]  refill    units gained per tick: Q / gcd(Q, W in ticks)       1 ..
limit[4]  token     units in one token: W in ticks / gcd                1 ..
limit[5]  tick      microseconds per tick                               1 ..
limit[6]  window    W in ticks                                          1 ..

look(counter, now_us) reads the counter of a key and a limit; its room = whole tokens now
wait(counter, units) returns microseconds until units tokens are there, -1 if they never can be
reset(counter, units) returns microseconds until full, once units more are taken
charge(counter, units) takes units without asking; returns whether a debt was cut
give_back(counter, units, at_us, level) returns to the key what of a charge has not refilled
after(counter, units) returns the level once units more are taken, and whether a debt was cut; for
the leaking bucket, which stands on this one
left(counter, at_us, level) returns what has not refilled of that; for the leaking bucket as well

Exact because time is counted in ticks and tokens in units of which a tick refills a whole number;
capacity * token < 2^53 (ratelimit/limits.py refuses the rest), and floor(a / b) of whole numbers
below 2^53 is exact in doubles.
Expiry only collects garbage: a key that is gone and a full bucket are the same.
Source: J. Turner, "New directions in communications", IEEE Communications Magazine 24(10), 1986.
]]
local read, write = ...
local floor, ceil, max, min = math.floor, math.ceil, math.max, math.min
local MOST = 9007199254740991 -- 2^53 - 1

local function look(counter, now_us)
  local limit = counter.limit
  local refill, token, tick = limit[3], limit[4], limit[5]
  local now = (now_us - now_us % tick) / tick
  local at, missing, broken = now, 0, false
  local last, then_missing = read(counter.key)
  if last then
    missing = then_missing
    if last - now > limit[6] then
      broken = true
    elseif last < now then
      local passed = now - last
      missing = passed < ceil(missing / refill) and missing - passed * refill or 0
    else
      at = last
    end
  end
  counter.room = floor((limit[2] * token - missing) / token)
  counter.at_us = at * tick
  counter.level = missing
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

local function reset(counter, units)
  local missing = after(counter, units)
  return missing == 0 and 0 or until_us(counter, ceil(missing / counter.limit[3]))
end

local function charge(counter, units)
  local missing, cut = after(counter, units)
  write(counter.key, until_us(counter, ceil(missing / counter.limit[3])), counter.at, missing)
  return cut
end

-- What is left now of a level at an instant.
local function left(counter, at_us, level)
  local limit = counter.limit
  local passed = max(0, counter.at - floor(at_us / limit[5]))
  return passed < ceil(level / limit[3]) and level - passed * limit[3] or 0
end

-- A charge is refilled last of all that was missing when it was made (level, units of its own
-- included), so what has not come back yet is what is left of that level, and at most the charge.
local function give_back(counter, units, at_us, level)
  local back = min(units * counter.limit[4], left(counter, at_us, level), counter.level)
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
  look = look, wait = wait, reset = reset, charge = charge, give_back = give_back, after = after,
  left = left,
}
