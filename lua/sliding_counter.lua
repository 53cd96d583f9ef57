--[[
sliding_counter: two adjacent fixed windows; the earlier one counts by the part still covered.

key       numbers {t, v, p}: t = tick of the last charge, v = units in its window, p = units in the
          window before that; absence = none
limit[2]  quota   units in any sliding window, by this estimate         1 ..
limit[3]  window  W in ticks; quota * window < 2^53                     1 ..
limit[4]  tick    microseconds per tick                                 1 ..
limit[5]  up      1 to round the earlier window's part up, else down    0 .. 1

look(counter, now_us) reads the counter of a key and a limit; its room = units left
wait(counter, units) returns microseconds until units pass, -1 if they never can
reset(counter, units) returns microseconds until both windows that hold a count have left
charge(counter, units) counts units without asking; returns whether a debt was cut
give_back(counter, units, at_us) takes units off the window they were counted in, if it is left

Exact because previous * (part of W in ticks) stays below 2^53, and remainders, floor(a / b) and
ceil(a / b) of such whole numbers are exact in doubles.
Expiry only collects garbage: counts of windows that have left and no counts are the same.
Source: Cloudflare, "How we built rate limiting capable of scaling to millions of domains", 2017.
]]
local read, write = ...
local floor, ceil, max = math.floor, math.ceil, math.max
local MOST = 9007199254740991 -- 2^53 - 1

-- What counts of `previous` units `passed` ticks into the next window.
local function weighted(limit, previous, passed)
  local part = previous * (limit[3] - passed) / limit[3]
  return limit[5] == 1 and ceil(part) or floor(part)
end

local function look(counter, now_us)
  local limit = counter.limit
  local window, tick = limit[3], limit[4]
  local at, current, previous, broken = (now_us - now_us % tick) / tick, 0, 0, false
  local last, counted, before = read(counter.key)
  if last then
    if last - at > window then
      current, previous, broken = counted, before, true
    else
      if last > at then
        at = last
      end
      local start = at - at % window
      if last >= start then
        current, previous = counted, before
      elseif last >= start - window then
        previous = counted
      end
    end
  end
  local passed = at % window
  local room = limit[2] - current
  if previous > 0 then
    room = room - weighted(limit, previous, passed)
  end
  counter.room = room
  counter.at_us = at * tick
  counter.level = false
  counter.broken = broken
  counter.at = at
  counter.start = at - passed
  counter.current = current
  counter.previous = previous
  counter.now_us = now_us
end

-- The first tick of a window at which what counts of `previous` is at most `room`: window itself
-- (the next one's start) if it is none of this one's, 0 if it is the first.
local function first_tick(limit, previous, room)
  local window = limit[3]
  if room >= previous then
    return 0
  elseif room < 0 then
    return window
  elseif limit[5] == 1 then
    return window - floor(room * window / previous)
  end
  return window - ceil((room + 1) * window / previous) + 1
end

local function wait(counter, units)
  local limit = counter.limit
  local window, room = limit[3], limit[2] - units
  if room < 0 then
    return -1
  end
  local passed = first_tick(limit, counter.previous, room - counter.current)
  if passed == window then
    passed = window + first_tick(limit, counter.current, room)
  end
  return (counter.start + passed) * limit[4] - counter.now_us
end

local function reset(counter, units)
  local turns = counter.current + units > 0 and 2 or counter.previous > 0 and 1 or 0
  if turns == 0 then
    return 0
  end
  local limit = counter.limit
  return (counter.start + turns * limit[3]) * limit[4] - counter.now_us
end

-- Debt stops where the product of `weighted` would pass 2^53.
local function keep(counter, units, expires_in)
  local most = floor(MOST / counter.limit[3])
  local current = counter.current + units
  write(counter.key, expires_in, counter.at, current > most and most or current, counter.previous)
  return current > most
end

-- The expiry is the end of the window after this one, and so is set by the first charge in it.
local function charge(counter, units)
  local first = counter.current == 0 or counter.broken
  return keep(counter, units, first and reset(counter, units))
end

local function give_back(counter, units, at_us)
  local limit = counter.limit
  local window, tick = limit[3], limit[4]
  local at = (at_us - at_us % tick) / tick
  local turned = (counter.start - (at - at % window)) / window
  if turned == 0 then
    counter.current = max(0, counter.current - units)
  elseif turned == 1 then
    counter.previous = max(0, counter.previous - units)
  else
    return
  end
  if counter.current + counter.previous == 0 then
    redis.call('DEL', counter.key)
  else
    keep(counter, 0, reset(counter, 0))
  end
end

return {look = look, wait = wait, reset = reset, charge = charge, give_back = give_back}
