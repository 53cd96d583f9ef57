--[[
leaking_bucket: a queue of B places that leaks Q per W at an even pace; a request waits its turn.

key       hash {t, v}: t = tick of the last charge, v = units queued then; absence means empty
limit[2]  capacity  places in the queue                                 1 .. 2^53-1
limit[3]  refill    units leaked per tick: Q / gcd(Q, W in ticks)       1 ..
limit[4]  token     units in one place: W in ticks / gcd                1 ..
limit[5]  tick      microseconds per tick                               1 ..
limit[6]  window    W in ticks                                          1 ..

look(key, now_us, limit) returns a state {room, at_us, level, unit, ...}: room = free places now
wait(state, units) returns microseconds until units places are free, -1 if they never can be
delay(state, taken) returns microseconds until the turn of what is queued next, behind taken more
reset(state, units) returns microseconds until empty, once units more are queued
charge(key, state, units, reset_us) queues units without asking, sets the expiry, and returns
whether a debt was cut
give_back(key, state, units, at_us, level) returns to the key what of a charge has not leaked yet

Exact because time is counted in ticks and places in units of which a tick leaks a whole number;
capacity * token < 2^53 (ratelimit/limits.py refuses the rest), and floor(a / b) of whole numbers
below 2^53 is exact in doubles.
Expiry only collects garbage: a key that is gone and an empty queue are the same.
Source: ITU-T I.371 (the leaky bucket as a queue); A. Tanenbaum, "Computer Networks", 5.4.
]]
local floor, ceil, max, min = math.floor, math.ceil, math.max, math.min
local MOST = 9007199254740991 -- 2^53 - 1

local function look(key, now_us, limit)
  local refill, token, tick = limit[3], limit[4], limit[5]
  local now = floor(now_us / tick)
  local at, queued, broken = now, 0, false
  local stored = redis.call('HMGET', key, 't', 'v')
  if stored[1] then
    at, queued = tonumber(stored[1]), tonumber(stored[2])
    if at - now > limit[6] then
      at, broken = now, true
    elseif at < now then
      local passed = now - at
      queued = passed < ceil(queued / refill) and queued - passed * refill or 0
      at = now
    end
  end
  return {
    room = floor((limit[2] * token - queued) / token),
    at_us = at * tick,
    level = queued,
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

-- The level found, divided by the rate, rounded up; the tick's own length is split off, so that no
-- product passes 2^53.
local function delay(state, taken)
  local limit = state.limit
  local found = after(state, taken)
  if found == 0 then
    return 0
  end
  local ticks = floor(found / limit[3])
  local rest = ceil((found - ticks * limit[3]) * limit[5] / limit[3])
  local ahead = max(0, state.at - floor(state.now_us / limit[5]))
  return (ahead + ticks) * limit[5] + rest
end

local function reset(state, units)
  local queued = after(state, units)
  return queued == 0 and 0 or until_us(state, ceil(queued / state.limit[3]))
end

local function charge(key, state, units, reset_us)
  local queued, cut = after(state, units)
  redis.call('HSET', key, 't', state.at, 'v', queued)
  redis.call('PEXPIRE', key, ceil(reset_us / 1000) + 2000)
  return cut
end

-- A charge leaks last of all that was queued when it was made (level, its own units included),
-- so what has not leaked yet is what is left of that level, and at most the charge.
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

return {
  look = look,
  wait = wait,
  delay = delay,
  reset = reset,
  charge = charge,
  give_back = give_back,
}
