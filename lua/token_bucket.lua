--[[
token_bucket: starts with B tokens, gains Q per W evenly up to B, and a request takes its cost.

key       hash {t, v}: t = tick of the last charge, v = units missing from the full bucket then;
          absence means full
limit[2]  capacity  tokens in a full bucket                             1 .. 2^53-1
limit[3]  refill    units gained per tick: Q / gcd(Q, W in ticks)       1 ..
limit[4]  token     units in one token: W in ticks / gcd                1 ..
limit[5]  tick      microseconds per tick                               1 ..
limit[6]  window    W in ticks                                          1 ..

look(key, now_us, limit) returns a state {room, at_us, level, unit, ...}: room = whole tokens now
wait(state, units) returns microseconds until units tokens are there, -1 if they never can be
reset(state, units) returns microseconds until full, once units more are taken
charge(key, state, units, reset_us) takes units without asking, sets the expiry, and returns
whether a debt was cut
give_back(key, state, units, at_us, level) returns to the key what of a charge has not refilled

Exact because time is counted in ticks and tokens in units of which a tick refills a whole number;
capacity * token < 2^53 (ratelimit/limits.py refuses the rest), and floor(a / b) of whole numbers
below 2^53 is exact in doubles.
Expiry only collects garbage: a key that is gone and a full bucket are the same.
Source: J. Turner, "New directions in communications", IEEE Communications Magazine 24(10), 1986.
]]
local floor, ceil, max, min = math.floor, math.ceil, math.max, math.min
local MOST = 9007199254740991 -- 2^53 - 1

local function look(key, now_us, limit)
  local refill, token, tick = limit[3], limit[4], limit[5]
  local now = floor(now_us / tick)
  local at, missing, broken = now, 0, false
  local stored = redis.call('HMGET', key, 't', 'v')
  if stored[1] then
    at, missing = tonumber(stored[1]), tonumber(stored[2])
    if at - now > limit[6] then
      at, broken = now, true
    elseif at < now then
      local passed = now - at
      missing = passed < ceil(missing / refill) and missing - passed * refill or 0
      at = now
    end
  end
  return {
    room = floor((limit[2] * token - missing) / token),
    at_us = at * tick,
    level = missing,
    unit = token,
    broken = broken,
    at = at,
    now_us = now_us,
    limit = limit,
  }
end

-- The instant `ticks` after the state's, seen from the caller's now.
local function until_us(state, ticks)
  return (state.at + ticks) * state.limit[5] - state.now_us
end

local function wait(state, units)
  local limit = state.limit
  if units > limit[2] then
    return -1
  end
  local short = state.level - (limit[2] - units) * limit[4]
  return until_us(state, ceil(short / limit[3]))
end

-- Debt stops where paying it off would take 2^52 microseconds (142 years), as a full bucket does.
local function after(state, units)
  local limit = state.limit
  local most = min(MOST, floor(4503599627370496 / limit[5]) * limit[3])
  if units > floor((most - state.level) / limit[4]) then
    return most, true
  end
  return state.level + units * limit[4], false
end

local function reset(state, units)
  local missing = after(state, units)
  return missing == 0 and 0 or until_us(state, ceil(missing / state.limit[3]))
end

local function charge(key, state, units, reset_us)
  local missing, cut = after(state, units)
  redis.call('HSET', key, 't', state.at, 'v', missing)
  redis.call('PEXPIRE', key, ceil(reset_us / 1000) + 2000)
  return cut
end

-- A charge is refilled last of all that was missing when it was made (level, units of its own
-- included), so what has not come back yet is what is left of that level, and at most the charge.
local function give_back(key, state, units, at_us, level)
  local limit = state.limit
  local passed = max(0, state.at - floor(at_us / limit[5]))
  local left = passed < ceil(level / limit[3]) and level - passed * limit[3] or 0
  local back = min(units * limit[4], left, state.level)
  if back <= 0 then
    return
  end
  state.level = state.level - back
  if state.level == 0 then
    redis.call('DEL', key)
  else
    charge(key, state, 0, reset(state, 0))
  end
end

return {look = look, wait = wait, reset = reset, charge = charge, give_back = give_back}
