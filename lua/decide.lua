--[[
decide: reads every check of a request, decides, and charges all of them or none.

KEYS      the keys of all checks, request after request
ARGV[1]   now, microseconds since the epoch; '' for the server's TIME
ARGV[2]   how many different kinds of request follow, each as how many checks it has and ten
          numbers for each: its limit's six, namely the algorithm's place (1 token_bucket,
          2 leaking_bucket, 3 fixed_window, 4 sliding_log, 5 sliding_counter, 6 ban, 7 concurrency),
          to which 8 times a number of its own may be added, and its five numbers (limit[2] ..
          limit[6] in that file's header); the cost; the action (0 charge, 1 shadow, 2 force, 3 give
          back, 4 renew); and for a give-back the charge's time (microseconds) and level, for a
          concurrency who asks (its header says how), for the others 0 and 0. Where how many there
          are is negative, costs, times and levels come with each request instead
then      for each request, its kind's place, behind which may be three numbers for each check
Returns   for each check six whole numbers: remaining, retry (microseconds; 0 where it is allowed,
          -1 for never), reset, delay, at (when it was decided) and level (a bucket's, after the
          charge; else 0; -1 where a debt was cut, of which nothing is given back; but of a request
          that is refused, the microseconds until remaining grows, -1 for never, 0 for unknown). Of
          a check whose key could not be read or written, the first number is the error's text
          instead, and its others are 0; it has no say, and the others of its request are decided
          without it.

One request's checks pass or fail together; requests are decided in the order they came. Within one,
checks that name the same counter see each other's charges through `taken`, the units that earlier
checks of this request would take. Shadow checks come after the enforced ones and have no
say. A refusal writes nothing, with two exceptions: a key whose clock is broken (its time lies more
than a window ahead) is set to the present, since otherwise its refusals would never end; and a ban
is struck where one of the checks that it covers, which are those behind it, is denied.

A ban's check costs 0: it takes nothing, and fits unless the ban is on. Forced, it strikes as often
as it costs. What a strike comes to is told at once, so that the request that begins a ban has its
end, and a level of 0. Where a request names a ban twice, the first check tells what comes of it.

A counter is its numbers, which an algorithm reads and writes together; in Redis they are one
string. An algorithm's counter is a table with `key` and `limit`, to which its look adds `room` (the
largest cost that would pass), `at_us` (the time it is decided at), `level` (false, or what a bucket
holds, and `unit`, what a cost of 1 adds to it), `broken` (whether its clock was), of a ban `banned`
(whether it is on), and its own.

In process, KEYS is false; see ratelimit/stores/memory.lua for what is returned then.
]]
local CHARGE, SHADOW, FORCE, GIVE_BACK, RENEW = 0, 1, 2, 3, 4
local CUT = -1
local FIELDS = 6
local TOKEN, LEAKING = 1, 2 -- the places of the two buckets
local BAN = 6

local algorithms = {}
local read, write

-- How far a request has got, for when a key of it fails.
local JUDGING, SETTLING, RESTORING = 1, 2, 3
local stage
local busy -- the place of the check whose key is looked at or written
local passed, returning -- the request's verdict, and whether it gives something back

local function algorithm_of(limit)
  local place = limit[1] % 8
  local algorithm = algorithms[place]
  if not algorithm then
    -- A leaking bucket is given a token bucket of its own, on which it stands.
    algorithm = chunks[place](read, write, place == LEAKING and chunks[TOKEN](read, write))
    algorithms[place] = algorithm
  end
  return algorithm
end

-- One check's own answer: whether its cost fits beside what earlier ones of the request take.
-- The first check that names a counter is its root, which is looked at and holds what is taken.
local function ask(now_us, checks, upto, check)
  local root, key, cost = check, check.key, check.cost
  for i = 1, upto do
    local other = checks[i]
    if other.key == key and other.root == other then
      root = other
    end
  end
  local before = 0
  if root == check then
    check.algorithm.look(check, now_us)
    check.taken, check.denied = 0, false
  else
    before = root.taken
  end
  local fits = before + cost <= root.room or check.action == FORCE
    or cost == 0 and not root.banned
  check.root, check.before, check.fits = root, before, fits
  if fits then
    root.taken = before + cost
  else
    root.denied = true
  end
  return fits
end

-- Looks at the first `count` of `checks`, one request, and says whether it passes, and whether
-- something is given back or renewed; what the checks come to follows reply[start]. Writes nothing.
local function judge(now_us, checks, count, reply, start)
  local passes, shadows, returns = true, false, false
  for i = 1, count do
    local check = checks[i]
    local action = check.action
    check.root = false
    if action == SHADOW then
      shadows = true
    elseif action == GIVE_BACK or action == RENEW then
      returns = true
    elseif not check.lost then
      busy = i
      if not ask(now_us, checks, i - 1, check) then
        passes = false
      end
    end
  end
  if shadows then
    for i = 1, count do
      if checks[i].action == SHADOW and not checks[i].lost then
        busy = i
        ask(now_us, checks, count, checks[i])
      end
    end
  end

  local at = start
  for i = 1, count do
    local check = checks[i]
    local root = check.root
    if root then
      busy = i
      local algorithm, before, fits, after = root.algorithm, check.before, check.fits, 0
      if passes then
        after = fits and before + check.cost or before
      end
      local left, delay, level = root.room - after, algorithm.delay, root.level
      reply[at + 1] = left > 0 and left or 0
      reply[at + 2] = fits and 0 or algorithm.wait(root, before + check.cost)
      reply[at + 3] = algorithm.reset(root, after)
      reply[at + 4] = delay and passes and fits and check.cost > 0 and delay(root, before) or 0
      reply[at + 5] = root.at_us
      if passes then
        reply[at + 6] = level and level + after * root.unit or 0
      elseif algorithm.renew or root.broken and not root.denied then
        reply[at + 6] = 0
      else
        reply[at + 6] = algorithm.wait(root, reply[at + 1] + 1)
      end
    end
    at = at + FIELDS
  end
  return passes, returns
end

-- Strikes a ban, the check number `i`, for each unit that was forced, and once where a check that
-- it covers, or a later check of the same ban does, was denied; tells what comes of it.
local function strike(checks, count, i, forced, reply, start)
  local ban, units = checks[i], forced
  for k = i, count do
    if checks[k].root == ban then
      for j = k + 1, k + checks[k].limit[6] do
        local covered = checks[j]
        if covered and covered.root and not covered.fits then
          units = forced + 1
        end
      end
    end
  end
  if units > 0 or ban.broken then
    local algorithm, before, at = ban.algorithm, ban.banned, start + (i - 1) * FIELDS
    algorithm.charge(ban, units)
    local left = ban.room > 0 and ban.room or 0
    reply[at + 1] = left
    reply[at + 2] = ban.banned and algorithm.wait(ban, 0) or 0
    reply[at + 3] = algorithm.reset(ban, 0)
    reply[at + 6] = ban.banned == before and algorithm.wait(ban, left + 1) or 0
  end
end

-- Charges what passed, from the check `first` on. Only after all were judged, since a wait may look
-- at a key once more.
local function settle(checks, count, reply, start, first)
  for i = first, count do
    local root = checks[i]
    if root.root == root then
      busy = i
      local charged = passed and root.taken or 0
      if root.limit[1] == BAN then
        strike(checks, count, i, charged, reply, start)
      elseif (charged > 0 or root.broken and root.denied)
        and root.algorithm.charge(root, charged) then
        for j = 1, count do
          if checks[j].root == root then
            reply[start + j * FIELDS] = CUT
          end
        end
      end
    end
  end
end

-- Returns what is given back, and renews, from the check `first` on; last, so that it adds up with
-- what this request has charged.
local function restore(now_us, checks, count, reply, start, first)
  for i = first, count do
    local check = checks[i]
    local action = check.action
    if (action == GIVE_BACK or action == RENEW) and not check.lost then
      busy = i
      local algorithm, at, stayed = check.algorithm, start + (i - 1) * FIELDS, 0
      if action == RENEW then
        algorithm.look(check, now_us)
        stayed = algorithm.renew(check, check.cost)
      elseif passed and check.charged_level ~= CUT then
        algorithm.look(check, now_us)
        algorithm.give_back(check, check.cost, check.charged_us, check.charged_level)
      end
      algorithm.look(check, now_us)
      reply[at + 1] = check.room > 0 and check.room or 0
      reply[at + 2] = 0
      reply[at + 3] = algorithm.reset(check, 0)
      reply[at + 4] = stayed
      reply[at + 5] = check.at_us
      reply[at + 6] = check.level or 0
    end
  end
end

local function decide(now_us, checks, count, reply, start)
  stage = JUDGING
  passed, returning = judge(now_us, checks, count, reply, start)
  stage = SETTLING
  settle(checks, count, reply, start, 1)
  if returning then
    stage = RESTORING
    restore(now_us, checks, count, reply, start, 1)
  end
end

if not KEYS then
  return function(reader, writer)
    read, write = reader, writer
    return decide, algorithm_of
  end
end

-- In Redis from here on ---------------------------------------------------------------------------

local ceil, format, sub = math.ceil, string.format, string.sub
local spelt = {} -- times as 16 digits: one script writes few different ones

-- A counter is one string: 16 digits for each number but the last, which has as many as it needs.
-- `read` and `write` hold that between them; a function for each step would cost every script more.
function read(key)
  local text = redis.call('GET', key)
  if text then
    return sub(text, 1, 16) + 0, sub(text, 17, 32) + 0, #text > 32 and sub(text, 33) + 0
  end
end

function write(key, expires_in, time, units, before)
  local first = spelt[time]
  if not first then
    first = format('%016.0f', time)
    spelt[time] = first
  end
  local text = before and format('%s%016.0f%.0f', first, units, before)
    or format('%s%.0f', first, units)
  if expires_in then
    redis.call('SET', key, text, 'PX', ceil(expires_in / 1000) + 2000)
  else
    redis.call('SET', key, text, 'KEEPTTL')
  end
end

local at = 1
local function next_number()
  at = at + 1
  return tonumber(ARGV[at])
end

local now_us = tonumber(ARGV[1])
if not now_us then
  local time = redis.call('TIME')
  now_us = tonumber(time[1]) * 1000000 + tonumber(time[2])
end
local kinds = {}
for i = 1, next_number() do
  local count = next_number()
  local checks = {own = count < 0}
  for j = 1, checks.own and -count or count do
    local limit = {
      next_number(), next_number(), next_number(), next_number(), next_number(), next_number(),
    }
    checks[j] = {
      limit = limit,
      algorithm = algorithm_of(limit),
      cost = next_number(),
      action = next_number(),
      charged_us = next_number(),
      charged_level = next_number(),
      -- Filled in for each request; named here so that the table need not grow.
      key = false, root = false, before = 0, fits = false, taken = 0, denied = false, now_us = 0,
      room = 0, at_us = 0, level = false, unit = 0, broken = false,
      banned = false, lost = false,
    }
  end
  kinds[i] = checks
end

-- Notes that the key of the busy check could not be read or written, for all checks of that key.
local function lose(checks, count, problem)
  local key = checks[busy].key
  for i = 1, count do
    if checks[i].key == key then
      checks[i].lost = type(problem) == 'table' and problem.err or problem or 'failed'
    end
  end
end

-- Goes on with a request of which a key failed. As long as nothing was written, it is judged anew
-- without that key; what fails later leaves the verdict as it is, and the other charges are made.
local function go_on(now_us, checks, count, reply, start)
  if stage == JUDGING then
    decide(now_us, checks, count, reply, start)
  elseif stage == SETTLING then
    settle(checks, count, reply, start, busy + 1)
    if returning then
      stage = RESTORING
      restore(now_us, checks, count, reply, start, 1)
    end
  else
    restore(now_us, checks, count, reply, start, busy + 1)
  end
end

local function decide_without(now_us, checks, count, reply, start, problem)
  local fine
  repeat
    lose(checks, count, problem)
    fine, problem = pcall(go_on, now_us, checks, count, reply, start)
  until fine
  for i = 1, count do
    local check, at = checks[i], start + (i - 1) * FIELDS
    if check.lost then
      for j = 2, FIELDS do
        reply[at + j] = 0
      end
      reply[at + 1] = check.lost
      check.lost = false
    end
  end
end

local reply, known = {}, 0
while at < #ARGV do
  at = at + 1
  local checks = kinds[tonumber(ARGV[at])]
  local count = #checks
  for j = 1, count do
    local check = checks[j]
    check.key = KEYS[known + j]
    if checks.own then
      check.cost = next_number()
      check.charged_us = next_number()
      check.charged_level = next_number()
    end
  end
  local start = known * FIELDS
  local fine, problem = pcall(decide, now_us, checks, count, reply, start)
  if not fine then
    decide_without(now_us, checks, count, reply, start, problem)
  end
  known = known + count
end
return reply
