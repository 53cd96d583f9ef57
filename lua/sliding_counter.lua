--[[
sliding_counter: two adjacent fixed windows; the earlier one counts by the part still covered.

key       hash {t, v, p}: t = tick of the last charge, v = units in its window, p = units in the
          window before that; absence = none
limit[2]  quota   units in any sliding window, by this estimate         1 ..
limit[3]  window  W in ticks; quota * window < 2^53                     1 ..
limit[4]  tick    microseconds per tick                                 1 ..
limit[5]  up      1 to round the earlier window's part up, else down    0 .. 1

look(key, now_us, limit) returns a state {room, at_us, level, unit, ...}: room = units left
wait(state, units) returns microseconds until units pass, -1 if they never can
reset(state, units) returns microseconds until both windows that hold a count have left
charge(key, state, units, reset_us) counts units without asking, sets the expiry, and returns
whether a debt was cut
give_back(key, state, units, at_us) takes units off the window they were counted in, if it is left

Exact because previous * (part of W in ticks) stays below 2^53, and floor(a / b) and ceil(a / b) of
such whole numbers are exact in doubles.
Expiry only collects garbage: counts of windows that have left and no counts are the same.
Source: Cloudflare, "How we built rate limiting capable of scaling to millions of domains", 2017.
]]
local floor, ceil, max, min = math.floor, math.ceil, math.max, math.min
local MOST = 9007199254740991 -- 2^53 - 1

-- What counts of `previous` units `passed` ticks into the next window.
local function weighted(limit, previous, passed)
  local part = previous * (limit[3] - passed) / limit[3]
  return limit[5] == 1 and ceil(part) or floor(part)
end

local function look(key, now_us, limit)
  local window, tick = limit[3], limit[4]
  local at, current, previous, broken = floor(now_us / tick), 0, 0, false
  local stored = redis.call('HMGET', key, 't', 'v', 'p')
  if stored[1] then
    local last = tonumber(stored[1])
    if last - at > window then
      current, previous, broken = tonumber(stored[2]), tonumber(stored[3]), true
    else
      at = max(last, at)
      local turned = floor(at / window) - floor(last / window)
      if turned == 0 then
        current, previous = tonumber(stored[2]), tonumber(stored[3])
      elseif turned == 1 then
        previous = tonumber(stored[2])
      end
    end
  end
  local start = floor(at / window) * window
  return {
    room = limit[2] - current - weighted(limit, previous, at - start),
    at_us = at * tick,
    level = 0,
    unit = 0,
    broken = broken,
    at = at,
    start = start,
    current = current,
    previous = previous,
    now_us = now_us,
    limit = limit,
  }
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

local function wait(state, units)
  local limit = state.limit
  local window, room = limit[3], limit[2] - units
  if room < 0 then
    return -1
  end
  local passed = first_tick(limit, state.previous, room - state.current)
  if passed == window then
    passed = window + first_tick(limit, state.current, room)
  end
  return (state.start + passed) * limit[4] - state.now_us
end

local function reset(state, units)
  local turns = state.current + units > 0 and 2 or state.previous > 0 and 1 or 0
  if turns == 0 then
    return 0
  end
  return (state.start + turns * state.limit[3]) * state.limit[4] - state.now_us
end

local function expire(key, reset_us)
  redis.call('PEXPIRE', key, ceil(reset_us / 1000) + 2000)
end

-- Debt stops where the product of `weighted` would pass 2^53. The expiry is the end of the window
-- after this one, and so is set by the first charge in it.
local function charge(key, state, units, reset_us)
  local most = floor(MOST / state.limit[3])
  local current = min(most, state.current + units)
  redis.call('HSET', key, 't', state.at, 'v', current, 'p', state.previous)
  if state.current == 0 or state.broken then
    expire(key, reset_us)
  end
  return state.current + units > most
end

local function give_back(key, state, units, at_us)
  local limit = state.limit
  local turned = floor(state.at / limit[3]) - floor(floor(at_us / limit[4]) / limit[3])
  if turned == 0 then
    state.current = max(0, state.current - units)
  elseif turned == 1 then
    state.previous = max(0, state.previous - units)
  else
    return
  end
  if state.current + state.previous == 0 then
    redis.call('DEL', key)
  else
    charge(key, state, 0, reset(state, 0))
    expire(key, reset(state, 0))
  end
end

return {look = look, wait = wait, reset = reset, charge = charge, give_back = give_back}
