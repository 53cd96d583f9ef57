--[[
fixed_window: windows of W start at whole multiples of W since the epoch; Q units pass in each.

key       hash {t, v}: t = microsecond of the last charge, v = units in its window; absence = none
limit[2]  quota   units per window                                      1 .. 2^53-1
limit[3]  window  W in microseconds                                     1 .. 2^51

look(key, now_us, limit) returns a state {room, at_us, level, unit, ...}: room = units left
wait(state, units) returns microseconds until units pass, -1 if they never can
reset(state, units) returns microseconds until the window's end, 0 if nothing is counted in it
charge(key, state, units, reset_us) counts units without asking, sets the expiry, and returns
whether a debt was cut
give_back(key, state, units, at_us) takes units off the count, if their window is still the present

Exact because it only adds whole numbers below 2^53 and finds windows by floor(a / b) of such.
Expiry only collects garbage: a count of an earlier window and no count are the same.
Debt ends with its window, as every count here does.
]]
local floor, ceil, max, min = math.floor, math.ceil, math.max, math.min
local MOST = 9007199254740991 -- 2^53 - 1

local function look(key, now_us, limit)
  local window = limit[3]
  local at, count, broken = now_us, 0, false
  local stored = redis.call('HMGET', key, 't', 'v')
  if stored[1] then
    local last = tonumber(stored[1])
    if last - now_us > window then
      count, broken = tonumber(stored[2]), true
    else
      at = max(last, now_us)
      if floor(last / window) == floor(at / window) then
        count = tonumber(stored[2])
      end
    end
  end
  return {
    room = limit[2] - count,
    at_us = at,
    level = 0,
    unit = 0,
    broken = broken,
    count = count,
    ends_in = (floor(at / window) + 1) * window - now_us,
    limit = limit,
  }
end

local function wait(state, units)
  return units > state.limit[2] and -1 or state.ends_in
end

local function reset(state, units)
  return state.count + units > 0 and state.ends_in or 0
end

-- The expiry is the window's end, and so is set by the first charge in it.
local function charge(key, state, units, reset_us)
  redis.call('HSET', key, 't', state.at_us, 'v', min(MOST, state.count + units))
  if state.count == 0 or state.broken then
    redis.call('PEXPIRE', key, ceil(reset_us / 1000) + 2000)
  end
  return state.count + units > MOST
end

local function give_back(key, state, units, at_us)
  local window = state.limit[3]
  if state.count == 0 or floor(at_us / window) ~= floor(state.at_us / window) then
    return
  end
  state.count = max(0, state.count - units)
  if state.count == 0 then
    redis.call('DEL', key)
  else
    charge(key, state, 0, state.ends_in)
  end
end

return {look = look, wait = wait, reset = reset, charge = charge, give_back = give_back}
