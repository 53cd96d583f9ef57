--[[
fixed_window: windows of W start at whole multiples of W since the epoch; Q units pass in each.

key       numbers {t, v}: t = microsecond of the last charge, v = units in its window;
          absence = none
limit[2]  quota   units per window                                      1 .. 2^53-1
limit[3]  window  W in microseconds                                     1 .. 2^51

look(counter, now_us) reads the counter of a key and a limit; its room = units left
wait(counter, units) returns microseconds until units pass, -1 if they never can
reset(counter, units) returns microseconds until the window's end, 0 if nothing is counted in it
charge(counter, units) counts units without asking; returns whether a debt was cut
give_back(counter, units, at_us) takes units off the count, if their window is still the present

Exact because it only adds whole numbers below 2^53 and takes remainders of such.
Expiry only collects garbage: a count of an earlier window and no count are the same.
Debt ends with its window, as every count here does.
]]
local read, write = ...
local max = math.max
local MOST = 9007199254740991 -- 2^53 - 1

local function look(counter, now_us)
  local limit = counter.limit
  local window = limit[3]
  local at, count, broken = now_us, 0, false
  local last, counted = read(counter.key)
  if last then
    if last - now_us > window then
      count, broken = counted, true
    else
      if last > at then
        at = last
      end
      if last >= at - at % window then
        count = counted
      end
    end
  end
  counter.room = limit[2] - count
  counter.at_us = at
  counter.level = false
  counter.broken = broken
  counter.count = count
  counter.ends_in = at - at % window + window - now_us
end

local function wait(counter, units)
  return units > counter.limit[2] and -1 or counter.ends_in
end

local function reset(counter, units)
  return counter.count + units > 0 and counter.ends_in or 0
end

-- The expiry is the window's end, and so is set by the first charge in it.
local function charge(counter, units)
  local count = counter.count
  local expires_in = (count == 0 or counter.broken) and counter.ends_in
  count = count + units
  write(counter.key, expires_in, counter.at_us, count > MOST and MOST or count)
  return count > MOST
end

local function give_back(counter, units, at_us)
  local window = counter.limit[3]
  if counter.count == 0 or at_us - at_us % window ~= counter.at_us - counter.at_us % window then
    return
  end
  counter.count = max(0, counter.count - units)
  if counter.count == 0 then
    redis.call('DEL', counter.key)
  else
    charge(counter, 0)
  end
end

return {look = look, wait = wait, reset = reset, charge = charge, give_back = give_back}
