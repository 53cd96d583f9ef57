--[[
ban: after so many strikes within W an identity is refused for a while, which doubles each time.

key       numbers {t, v} or {t, v, p}: t = microsecond of the last strike, v = units missing from
          the full bucket of strikes then; p = 64 * e + d, e = millisecond at which the last ban
          ends or has ended, d = how often the next one's length is doubled; absence = none of both
limit[2]  after    strikes in a full bucket; the one that empties it begins a ban  1 .. 2^53-1
limit[3]  within   W in microseconds, in which an empty bucket fills              1 .. 2^51
limit[4]  for      microseconds that the first ban lasts                          1000 .. up_to
limit[5]  up_to    microseconds that any lasts at most                            1000 .. 2^45

look(counter, now_us) reads the counter of a key and a limit; its room = strikes that are left, -1
while it is banned, and banned says so
wait(counter, units) returns microseconds until the ban is over, or units strikes are left
reset(counter, units) returns microseconds until no strike and no ban is remembered
charge(counter, units) strikes so many times, unless it is banned; cuts no debt
give_back() does nothing: a strike was a refusal, which nobody takes back

The driver reads limit[6]: how many of the checks that follow are of its rule.
A ban takes the strikes away, so that the threshold stays. Of each length of a ban that passes
without another, one doubling is forgotten. An end that lies further ahead than a ban may last is
left behind by a broken clock, and is not believed.
Exact because strikes are counted in units of which a microsecond refills `after` and each takes
`within`; after * within < 2^53, for * 2^d < 2 * up_to, and 64 * e + d < 2^53.
Expiry only collects garbage: full, with nothing doubled, and no key are the same.
Source: fail2ban's bantime.increment, without what lowers its threshold.
]]
local read, write = ...
local floor, ceil, max, min = math.floor, math.ceil, math.max, math.min

-- The length of a ban that is doubled so often.
local function length(limit, doubled)
  return min(limit[4] * 2 ^ doubled, limit[5])
end

-- The instant at which a ban that ended then is as if it had never been.
local function forgotten(limit, ends, doubled)
  return ends + limit[4] * (2 ^ doubled - 1)
end

local function room_of(counter)
  local limit = counter.limit
  return floor((limit[2] * limit[3] - counter.missing) / limit[3])
end

local function look(counter, now_us)
  local limit = counter.limit
  local at, missing, ends, doubled, over = now_us, 0, 0, 0, 0
  local banned, broken = false, false
  local last, then_missing, packed = read(counter.key)
  if last then
    missing = then_missing
    if last <= at then
      local passed = at - last
      missing = passed < ceil(missing / limit[2]) and missing - passed * limit[2] or 0
    elseif last - at <= limit[3] then
      at = last
    end
  end
  if packed then
    doubled = packed % 64
    ends = (packed - doubled) / 64 * 1000
    if ends - at > length(limit, doubled) then
      broken, ends = true, at - at % 1000
      packed = ends / 1000 * 64 + doubled
    end
    banned = ends > at
    over = forgotten(limit, ends, doubled)
    local quiet = at - ends
    while doubled > 0 and quiet >= length(limit, doubled - 1) do
      doubled = doubled - 1
      quiet = quiet - length(limit, doubled)
    end
  end
  counter.at_us = at
  counter.level = false
  counter.broken = broken
  counter.banned = banned
  counter.missing = missing
  counter.ends = ends
  counter.doubled = doubled
  counter.packed = packed
  counter.over = over
  counter.now_us = now_us
  counter.room = banned and -1 or room_of(counter)
end

local function wait(counter, units)
  local limit = counter.limit
  if units > limit[2] then
    return -1
  elseif counter.banned then
    return counter.ends - counter.now_us
  end
  local short = counter.missing - (limit[2] - units) * limit[3]
  return counter.at_us + ceil(short / limit[2]) - counter.now_us
end

local function reset(counter, units)
  local limit = counter.limit
  local missing = min(counter.missing + units * limit[3], limit[2] * limit[3])
  local full = counter.at_us + ceil(missing / limit[2])
  return max(full, counter.over) - counter.now_us
end

local function begin(counter)
  local limit = counter.limit
  local lasts = length(limit, counter.doubled)
  if lasts < limit[5] then
    counter.doubled = counter.doubled + 1
  end
  counter.missing, counter.banned, counter.room = 0, true, -1
  counter.ends = floor((counter.at_us + lasts) / 1000) * 1000
  counter.packed = counter.ends / 1000 * 64 + counter.doubled
  counter.over = forgotten(limit, counter.ends, counter.doubled)
end

local function charge(counter, units)
  if counter.banned then
    return false
  elseif units >= counter.room then
    begin(counter)
  else
    counter.missing = counter.missing + units * counter.limit[3]
    counter.room = room_of(counter)
  end
  -- What is forgotten is not written on, or else expiry would have a say.
  local packed = counter.over > counter.at_us and counter.packed
  write(counter.key, reset(counter, 0), counter.at_us, counter.missing, packed)
  return false
end

local function give_back()
end

return {look = look, wait = wait, reset = reset, charge = charge, give_back = give_back}
