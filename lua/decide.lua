--[[
decide: reads every check of a request, decides, and charges all of them or none.

KEYS[i]   the key of check i
ARGV[1]   now, microseconds since the epoch; '' for the server's TIME
ARGV[2]   how many different limits follow, six numbers each: the algorithm's place (1 token_bucket,
          2 leaking_bucket, 3 fixed_window, 4 sliding_log, 5 sliding_counter) and its five numbers
          (limit[2] .. limit[6] in that file's header)
then      how many different kinds of check follow, five numbers each: its limit's place, the cost,
          the action (0 charge, 1 shadow, 2 force, 3 give back), and for a give-back the charge's
          time (microseconds) and level; for the others 0 and 0
then      for check i, its kind's place; negative where it is the last of its request
Returns   for check i, seven whole numbers: allowed (0 or 1), remaining, retry (microseconds; 0 if
          allowed, -1 for never), reset, delay, at (when it was decided) and level (a bucket's,
          after the charge; else 0; -1 where a debt was cut, of which nothing is given back). Of a
          request whose keys could not be read or written, the first number is the error's text
          instead, and its others are 0.

One request's checks pass or fail together; requests are decided in the order they came. Within one,
checks that name the same counter see each other's charges through `taken`, the units that earlier
checks of this request would take. Shadow checks come after the enforced ones and have no
say. A refusal writes nothing, with one exception: a key whose clock is broken (its time lies more
than a window ahead) is set to the present, since otherwise its refusals would never end.

In process, KEYS is false and the function itself is returned: see ratelimit/stores/memory.lua.
]]
local CHARGE, SHADOW, FORCE, GIVE_BACK = 0, 1, 2, 3
local CUT = -1
local max = math.max

local algorithms = {}

local function algorithm_at(place)
  local algorithm = algorithms[place]
  if not algorithm then
    algorithm = chunks[place]()
    algorithms[place] = algorithm
  end
  return algorithm
end

-- One check's own answer: whether its cost fits beside what earlier ones of the request take.
-- The first check that names a counter is its root, which holds the state and what is taken.
local function ask(now_us, first, upto, i, checks)
  local keys, taken = checks.keys, checks.taken
  local key, limit, cost = keys[i], checks.limits[i], checks.costs[i]
  local root = i
  for j = first, upto do
    if keys[j] == key and checks.roots[j] == j then
      root = j
    end
  end
  if root == i then
    checks.states[i] = (algorithms[limit[1]] or algorithm_at(limit[1])).look(key, now_us, limit)
    taken[i], checks.denied[i] = 0, false
  end
  local before = taken[root]
  local fits = cost == 0 or checks.actions[i] == FORCE or before + cost <= checks.states[root].room
  checks.roots[i], checks.before[i], checks.own[i] = root, before, fits
  if fits then
    taken[root] = before + cost
  else
    checks.denied[root] = true
  end
  return fits
end

-- Decides the checks first .. last of one request; `checks` are arrays of equal length.
local function decide(now_us, first, last, checks, reply)
  local keys, limits, costs, actions = checks.keys, checks.limits, checks.costs, checks.actions
  local states, roots, taken = checks.states, checks.roots, checks.taken
  local passed, shadows, returning = true, false, false

  for i = first, last do
    local action = actions[i]
    roots[i] = false
    if action == SHADOW then
      shadows = true
    elseif action == GIVE_BACK then
      returning = true
    else
      passed = ask(now_us, first, i - 1, i, checks) and passed
    end
  end
  if shadows then
    for i = first, last do
      if actions[i] == SHADOW then
        ask(now_us, first, last, i, checks)
      end
    end
  end

  for i = first, last do
    local root = roots[i]
    if root then
      local state, algorithm, at = states[root], algorithms[limits[i][1]], (i - 1) * 7
      local before, cost, fits = checks.before[i], costs[i], checks.own[i]
      local after = passed and before + (fits and cost or 0) or 0
      reply[at + 1] = fits and 1 or 0
      reply[at + 2] = max(0, state.room - after)
      reply[at + 3] = fits and 0 or algorithm.wait(state, before + cost)
      reply[at + 4] = algorithm.reset(state, after)
      reply[at + 5] = passed and fits and cost > 0 and algorithm.delay
        and algorithm.delay(state, before) or 0
      reply[at + 6] = state.at_us
      reply[at + 7] = state.level + after * state.unit
    end
  end
  -- Only now, since a wait may look at the key once more.
  for i = first, last do
    if roots[i] == i then
      local state, charged = states[i], passed and taken[i] or 0
      if charged > 0 or (state.broken and checks.denied[i]) then
        local algorithm = algorithms[limits[i][1]]
        if algorithm.charge(keys[i], state, charged, algorithm.reset(state, charged)) then
          for j = first, last do
            if roots[j] == i then
              reply[j * 7] = CUT
            end
          end
        end
      end
    end
  end
  if not returning then
    return
  end

  -- Last, so that they add up with what this request has charged.
  for i = first, last do
    if actions[i] == GIVE_BACK then
      local key, limit, level = keys[i], limits[i], checks.levels[i]
      local algorithm = algorithm_at(limit[1])
      if passed and level ~= CUT then
        local found = algorithm.look(key, now_us, limit)
        algorithm.give_back(key, found, costs[i], checks.at_us[i], level)
      end
      local at, state = (i - 1) * 7, algorithm.look(key, now_us, limit)
      reply[at + 1], reply[at + 2], reply[at + 3] = 1, max(0, state.room), 0
      reply[at + 4], reply[at + 5] = algorithm.reset(state, 0), 0
      reply[at + 6], reply[at + 7] = state.at_us, state.level
    end
  end
end

if not KEYS then
  return decide
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
local limits, kinds = {}, {}
for i = 1, next_number() do
  limits[i] = {
    next_number(), next_number(), next_number(), next_number(), next_number(), next_number(),
  }
end
for i = 1, next_number() do
  kinds[i] = {
    limits[next_number()], next_number(), next_number(), next_number(), next_number(),
  }
end
local checks = {
  keys = KEYS, limits = {}, costs = {}, actions = {}, at_us = {}, levels = {},
  states = {}, roots = {}, taken = {}, denied = {}, before = {}, own = {},
}
local reply, first = {}, 1
for i = 1, #KEYS do
  local place = next_number()
  local kind = kinds[place < 0 and -place or place]
  checks.limits[i], checks.costs[i], checks.actions[i] = kind[1], kind[2], kind[3]
  checks.at_us[i], checks.levels[i] = kind[4], kind[5]
  if place < 0 then
    local fine, problem = pcall(decide, now_us, first, i, checks, reply)
    if not fine then
      for j = (first - 1) * 7 + 1, i * 7 do
        reply[j] = 0
      end
      reply[(first - 1) * 7 + 1] = type(problem) == 'table' and problem.err or problem
    end
    first = i + 1
  end
end
return reply
