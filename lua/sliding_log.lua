--[[
sliding_log: keeps the time of every unit accepted in the last W; at most Q are kept.

key       list {t, n, t, n, ..., total}: n units at microsecond t, oldest first, the last n not 0;
          total = the sum of n; absence = none
limit[2]  quota   units in any window (t - W, t]                        1 .. 2^53-1
limit[3]  window  W in microseconds                                     1 .. 2^51

look(counter, now_us) reads the counter of a key and a limit; its room = units left
wait(counter, units) returns microseconds until units pass, -1 if they never can
reset(counter, units) returns microseconds until the last entry leaves
charge(counter, units) logs units without asking and drops what is outdated; returns whether a
debt was cut
give_back(counter, units, at_us) takes units off the entry of that microsecond, if it is kept

Exact because it only compares and adds whole numbers below 2^53.
A list, since Redis packs its numbers: about 12 bytes an entry, where a sorted set takes 90; units
of one microsecond share an entry. Outdated entries at the head are walked in growing steps; a
charge drops them, so a walk is paid for by the charges that made them.
Expiry only collects garbage: outdated entries and no entries are the same.
]]
local ceil, max, min = math.ceil, math.max, math.min
local MOST = 9007199254740991 -- 2^53 - 1

-- Walks entries from the index `first` (0 = oldest) to the first one later than `after` with which
-- at least `leaving` units have been walked; returns its index, its time, and the units before it.
-- There is one, unless somebody else has written to the key.
local function walk(key, first, after, leaving)
  local sum, step = 0, 2
  while true do
    local entries = redis.call('LRANGE', key, 2 * first, 2 * (first + step) - 1)
    for i = 1, #entries - 1, 2 do
      local t, n = tonumber(entries[i]), tonumber(entries[i + 1])
      if t > after and sum + n >= leaving then
        return first, t, sum
      end
      first, sum = first + 1, sum + n
    end
    if #entries < 2 then
      error('the entries of this sliding log do not add up to its total: not the limiter\'s value')
    end
    step = min(step * 4, 512)
  end
end

local function look(counter, now_us)
  local key, limit = counter.key, counter.limit
  local window = limit[3]
  counter.room = limit[2]
  counter.at_us = now_us
  counter.level = false
  counter.broken = false
  counter.kept = 0 -- units that count
  counter.first = 0 -- index of the oldest entry that counts
  counter.last = false -- time of the newest entry that counts
  counter.stale = false
  counter.now_us = now_us
  local tail = redis.call('LRANGE', key, -3, -1)
  if not tail[1] then
    return
  end
  local last, total = tonumber(tail[1]), tonumber(tail[3])
  local at = max(last, now_us)
  local outdated = at - window
  if last <= outdated then
    counter.stale = true
    return
  end
  local gone, _ = 0, nil
  if tonumber(redis.call('LINDEX', key, 0)) <= outdated then
    counter.first, _, gone = walk(key, 0, outdated, 0)
  end
  counter.kept = total - gone
  counter.room = limit[2] - counter.kept
  counter.last = last
  counter.last_units = tonumber(tail[2])
  counter.at_us = at
  if last - now_us > window then
    counter.broken, counter.at_us, counter.last = true, now_us, now_us
  end
end

local function wait(counter, units)
  local quota, window = counter.limit[2], counter.limit[3]
  if units > quota then
    return -1
  end
  if counter.broken then
    return window
  end
  local leaving = counter.kept + units - quota
  local _, t = walk(counter.key, counter.first, -1, leaving)
  return t + window - counter.now_us
end

local function reset(counter, units)
  local last = units > 0 and counter.at_us or counter.last
  return last and last + counter.limit[3] - counter.now_us or 0
end

local function charge(counter, units)
  local key = counter.key
  local total = min(MOST, counter.kept + units)
  if counter.broken or counter.stale then
    redis.call('DEL', key)
    redis.call('RPUSH', key, counter.at_us, total, total)
  elseif not counter.last then
    redis.call('RPUSH', key, counter.at_us, units, units)
  else
    if counter.first > 0 then
      redis.call('LTRIM', key, 2 * counter.first, -1)
    end
    if counter.last == counter.at_us then
      redis.call('LSET', key, -2, min(MOST, counter.last_units + units))
      redis.call('LSET', key, -1, total)
    elseif units > 0 then
      redis.call('LSET', key, -1, counter.at_us)
      redis.call('RPUSH', key, units, total)
    end
  end
  redis.call('PEXPIRE', key, ceil(reset(counter, units) / 1000) + 2000)
  return counter.kept + units > MOST
end

-- Looks for the entry from the newest backwards, since what is given back was taken a moment ago.
local function give_back(counter, units, at_us)
  local key = counter.key
  if not counter.last or counter.broken then
    return
  end
  local index, step = -3, 2
  while true do
    local entries = redis.call('LRANGE', key, index - 2 * (step - 1), index + 1)
    for i = #entries - 1, 1, -2 do
      local t, n = tonumber(entries[i]), tonumber(entries[i + 1])
      if t < at_us or t <= counter.at_us - counter.limit[3] then
        return
      end
      if t == at_us then
        local back = min(units, n)
        local total = tonumber(redis.call('LINDEX', key, -1)) - back
        if total == 0 then
          redis.call('DEL', key)
          return
        end
        redis.call('LSET', key, index + 1, n - back)
        redis.call('LSET', key, -1, total)
        -- The newest entry is the time of the last charge: it must not be an empty one.
        while tonumber(redis.call('LINDEX', key, -2)) == 0 do
          redis.call('LTRIM', key, 0, -4)
          redis.call('RPUSH', key, total)
        end
        local newest = tonumber(redis.call('LINDEX', key, -3))
        local reset_us = newest + counter.limit[3] - counter.now_us
        redis.call('PEXPIRE', key, ceil(max(0, reset_us) / 1000) + 2000)
        return
      end
      index = index - 2
    end
    if #entries < 2 then
      return
    end
    step = min(step * 4, 512)
  end
end

return {look = look, wait = wait, reset = reset, charge = charge, give_back = give_back}
