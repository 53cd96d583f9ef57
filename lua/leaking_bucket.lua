--[[
leaking_bucket: a queue of B places that leaks Q per W evenly; F pass at once, the others wait.

Stands on token_bucket, which is the same bucket seen from the other side: a token missing there is
a place taken here, and what refills there leaks here; absence means empty.
Taken from there: key, limit, look, wait, reset, charge, after, left.
Beside its place, limit[1] holds 8 * (F - 1).

delay(counter, taken) returns microseconds until the turn of what is queued next, behind taken more
give_back(counter, units, at_us, level) returns to the key what of a charge has not leaked, if it is
the last in the queue: who came next would else be promised an instant that is another's already

Exact because the tick's own length is split off, so that no product passes 2^53.
Source: ITU-T I.371 (the leaky bucket as a queue); A. Tanenbaum, "Computer Networks", 5.4.
]]
local _, _, bucket = ... -- a token bucket of its own
local floor, ceil, max = math.floor, math.ceil, math.max

-- The level found above what is free, divided by the rate, rounded up.
local function delay(counter, taken)
  local limit = counter.limit
  local free = floor(limit[1] / 8) * limit[4]
  local found = bucket.after(counter, taken) - free
  if found <= 0 then
    return 0
  end
  local ticks = floor(found / limit[3])
  local rest = ceil((found - ticks * limit[3]) * limit[5] / limit[3])
  local ahead = max(0, counter.at - floor(counter.now_us / limit[5]))
  return (ahead + ticks) * limit[5] + rest
end

local give_back_any = bucket.give_back

local function give_back(counter, units, at_us, level)
  if counter.level <= bucket.left(counter, at_us, level) then
    give_back_any(counter, units, at_us, level)
  end
end

bucket.delay, bucket.give_back = delay, give_back
return bucket
