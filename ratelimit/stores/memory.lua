--[[
What Redis is to lua/ when there is no Redis: counters and lists in Lua tables.

Returns a function (source, max_keys, seed) that compiles the script in a sandbox which holds only
names that Redis offers, and returns the functions at the end of this file; `seed` is for sampling.

A key is one record, an array (so that a million of them stay small):
  [1] key  [2] place in `records`  [3] expiry, microseconds  [4] spent: nothing was left at its last
  decision  [5] .. [7] a counter's numbers, or [5] first and [6] last index of a list's elements, or
  [5] a hash's fields
`records` holds all of them without gaps, for two walks: a hand that goes round and collects what
has expired, a few per decision, and sampling when the store is full.
]]
local KEY, PLACE, EXPIRY, SPENT, FIRST, LAST = 1, 2, 3, 4, 5, 6
local SLACK_US = 2000000 -- that a counter is kept beyond its reset, as in Redis
local FIELDS = 6 -- numbers per check in the reply
local LOOKS = 16 -- expired keys looked at per decision, and keys sampled per eviction

return function(source, max_keys, seed)
  math.randomseed(seed)
  local random = math.random
  local db, records, size, hand = {}, {}, 0, 1
  local now_us, evicted, told = 0, 0, 0
  local most, cycles = 0, 0

  local function remove(record)
    local last, place = records[size], record[PLACE]
    records[place] = last
    last[PLACE] = place
    records[size] = nil
    size = size - 1
    db[record[KEY]] = nil
  end

  -- A decision on a known key makes no garbage, so nothing else would bring Lua's collector round
  -- after a rush. Two cycles, since one under way may miss what was dropped meanwhile.
  local function release()
    if collectgarbage('step', 16) then
      cycles = cycles + 1
      if cycles == 2 then
        most, cycles = size, 0
      end
    end
  end

  -- Looks at one live record, or at up to LOOKS while they prove to be expired.
  local function collect()
    if size * 4 < most then
      release()
    end
    for _ = 1, LOOKS do
      if hand > size then
        hand = 1
        if size == 0 then
          return
        end
      end
      local record = records[hand]
      if record[EXPIRY] > now_us then
        hand = hand + 1
        return
      end
      remove(record)
    end
  end

  -- Gives up one key: an expired one that the hand finds next, else, of a few taken by chance, the
  -- one that is soonest as if never used; one that is spent only if all of them are.
  local function evict()
    local worst
    for _ = 1, LOOKS do
      hand = hand < size and hand + 1 or 1
      if records[hand][EXPIRY] <= now_us then
        remove(records[hand])
        return
      end
    end
    for _ = 1, LOOKS do
      local record = records[random(size)]
      if record[EXPIRY] <= now_us then
        remove(record)
        return
      end
      if not worst or (worst[SPENT] and not record[SPENT])
        or (worst[SPENT] == record[SPENT] and record[EXPIRY] < worst[EXPIRY]) then
        worst = record
      end
    end
    remove(worst)
    evicted = evicted + 1
  end

  local function create(key)
    if size >= max_keys then
      evict()
    end
    size = size + 1
    if size > most then
      most = size
    end
    local record = {key, size, 1 / 0, false, false, false, false}
    records[size] = record
    db[key] = record
    return record
  end

  local function read(key)
    local record = db[key]
    if record then
      return record[5], record[6], record[7]
    end
  end

  local function write(key, expires_in, time, units, before)
    local record = db[key]
    if not record then
      if not expires_in then
        return -- it was given up a moment ago, for another key of the same request
      end
      record = create(key)
    end
    record[5], record[6], record[7] = time, units, before or false
    record[SPENT] = false
    if expires_in then
      record[EXPIRY] = now_us + expires_in + SLACK_US
    end
  end

  -- Redis's own reading of a list's range: negative from the end, cut to what is there.
  local function range(record, from, to)
    local first, last = record[FIRST], record[LAST]
    from = from < 0 and last + 1 + from or first + from
    to = to < 0 and last + 1 + to or first + to
    return from < first and first or from, to > last and last or to
  end

  local commands = {}

  function commands.DEL(key)
    local record = db[key]
    if record then
      remove(record)
      return 1
    end
    return 0
  end

  function commands.PEXPIRE(key, ttl_ms)
    local record = db[key]
    if not record then
      return 0
    end
    record[EXPIRY] = now_us + ttl_ms * 1000
    return 1
  end

  function commands.RPUSH(key, ...)
    local record = db[key]
    if not record then
      record = create(key)
      record[FIRST], record[LAST] = 7, 6
    end
    local last = record[LAST]
    for i = 1, select('#', ...) do
      record[last + i] = (select(i, ...))
    end
    record[LAST] = last + select('#', ...)
    record[SPENT] = false
    return record[LAST] - record[FIRST] + 1
  end

  function commands.LRANGE(key, from, to)
    local record, elements = db[key], {}
    if record then
      from, to = range(record, from, to)
      for i = from, to do
        elements[i - from + 1] = record[i]
      end
    end
    return elements
  end

  function commands.LINDEX(key, index)
    local record = db[key]
    if not record then
      return false
    end
    local at = index < 0 and record[LAST] + 1 + index or record[FIRST] + index
    return at >= record[FIRST] and record[at] or false
  end

  function commands.LSET(key, index, element)
    local record = db[key]
    local at = index < 0 and record[LAST] + 1 + index or record[FIRST] + index
    record[at] = element
    record[SPENT] = false
    return {ok = 'OK'}
  end

  function commands.LTRIM(key, from, to)
    local record = db[key]
    if record then
      from, to = range(record, from, to)
      if from > to then
        remove(record)
        return {ok = 'OK'}
      end
      for i = to + 1, record[LAST] do
        record[i] = nil
      end
      -- What is dropped at the head leaves a gap; elements move down once it is the larger part.
      local first, kept = from, to - from + 1
      if from - 7 > kept then
        for i = 0, kept - 1 do
          record[7 + i] = record[from + i]
        end
        for i = 7 + kept, to do
          record[i] = nil
        end
        first, to = 7, 6 + kept
      else
        for i = record[FIRST], from - 1 do
          record[i] = false
        end
      end
      record[FIRST], record[LAST] = first, to
    end
    return {ok = 'OK'}
  end

  function commands.HGETALL(key)
    local record, found, last = db[key], {}, 0
    if record then
      for field, value in pairs(record[5]) do
        found[last + 1], found[last + 2] = field, value
        last = last + 2
      end
    end
    return found
  end

  function commands.HSET(key, field, value)
    local record = db[key]
    if not record then
      record = create(key)
      record[5] = {}
    end
    local added = record[5][field] and 0 or 1
    record[5][field] = value
    record[SPENT] = false
    return added
  end

  function commands.HDEL(key, field)
    local record = db[key]
    if not record or not record[5][field] then
      return 0
    end
    record[5][field] = nil
    if not next(record[5]) then
      remove(record)
    end
    return 1
  end

  -- Redis looks commands up as data; so do we, and anything else is an error there and here.
  local function call(name, ...)
    local command = commands[name]
    if not command then
      error("unknown command '" .. tostring(name) .. "'", 2)
    end
    return command(...)
  end

  local sandbox = setmetatable({
    KEYS = false,
    math = math,
    string = string,
    tonumber = tonumber,
    type = type,
    error = error,
    pcall = pcall,
    redis = {call = call},
  }, {
    __index = function(_, name)
      error("Script attempted to access nonexistent global variable '" .. tostring(name) .. "'", 2)
    end,
    __newindex = function(_, name)
      error("scripts must not create the global variable '" .. tostring(name) .. "'", 2)
    end,
  })
  local chunk, problem = loadstring(source, '=lua')
  if not chunk then
    error(problem, 0)
  end
  local decide, algorithm_of = setfenv(chunk, sandbox)()(read, write)

  local kinds, reply = {}, {}

  local function mark_spent(checks, count)
    for i = 1, count do
      if reply[FIELDS * i - FIELDS + 1] == 0 then
        local record = db[checks[i].key]
        if record then
          record[SPENT] = true
        end
      end
    end
  end

  -- Decides a request whose checks are filled in: six numbers for each, and where keys were evicted
  -- since the last call, how many have been so far.
  local function answer(now, checks, count)
    now_us = now
    collect()
    decide(now, checks, count, reply, 0)
    if count == 1 and evicted == told then
      if reply[1] == 0 then
        mark_spent(checks, 1)
      end
      return reply[1], reply[2], reply[3], reply[4], reply[5], reply[6]
    end
    mark_spent(checks, count)
    local last = FIELDS * count
    reply[last + 1] = nil
    if evicted > told then
      told = evicted
      last = last + 1
      reply[last] = evicted
    end
    return unpack(reply, 1, last)
  end

  return {
    -- Makes a kind of request known as number `place`, seven arguments for each check: what its key
    -- begins with (false where it is given as a whole), and its limit's six numbers.
    know = function(place, ...)
      local given, checks = {...}, {}
      for i = 1, #given, 7 do
        local limit = {unpack(given, i + 1, i + 6)}
        checks[#checks + 1] = {
          begin = given[i], limit = limit, algorithm = algorithm_of(limit), key = false, cost = 0,
          action = 0, charged_us = 0, charged_level = 0,
        }
      end
      kinds[place] = checks
    end,
    -- Forgets them all, so that limits built without end do not stay.
    forget_kinds = function()
      kinds = {}
    end,
    -- A request of a kind in which all checks are of one key, at one cost, and no give-back.
    -- Nothing where the kind is not known (any more).
    alike = function(now, place, key, cost, action)
      local checks = kinds[place]
      if not checks then
        return nil
      end
      local count = #checks
      for i = 1, count do
        local check = checks[i]
        local begin = check.begin
        check.key = begin and begin .. key or key
        check.cost, check.action = cost, action
      end
      return answer(now, checks, count)
    end,
    -- Requests as `alike` has them, one after the other, five arguments for each. Returns, of those
    -- that do not pass at once, their places from 0, and two numbers for each of their checks: how
    -- long until it would pass (0 where it does, -1 for never), and its delay.
    run = function(...)
      local given, found, last = {...}, {}, 0
      for at = 1, #given, 5 do
        local now, checks, key = given[at], kinds[given[at + 1]], given[at + 2]
        local count, plain = #checks, true
        for i = 1, count do
          local check = checks[i]
          local begin = check.begin
          check.key = begin and begin .. key or key
          check.cost, check.action = given[at + 3], given[at + 4]
        end
        now_us = now
        collect()
        decide(now, checks, count, reply, 0)
        mark_spent(checks, count)
        for i = 1, count do
          if reply[FIELDS * i - 4] ~= 0 or reply[FIELDS * i - 2] ~= 0 then
            plain = false
          end
        end
        if not plain then
          last = last + 1
          found[last] = (at - 1) / 5
          for i = FIELDS, FIELDS * count, FIELDS do
            found[last + 1], found[last + 2] = reply[i - 4], reply[i - 2]
            last = last + 2
          end
        end
      end
      return unpack(found, 1, last)
    end,
    -- Any request of a known kind, five arguments for each check: key, cost, action, at_us, level.
    each = function(now, place, ...)
      local checks, given = kinds[place], {...}
      for i = 1, #checks do
        local check, at = checks[i], 5 * i - 5
        local begin, key = check.begin, given[at + 1]
        check.key = begin and begin .. key or key
        check.cost, check.action = given[at + 2], given[at + 3]
        check.charged_us, check.charged_level = given[at + 4], given[at + 5]
      end
      return answer(now, checks, #checks)
    end,
    forget = function(key)
      return commands.DEL(key)
    end,
    -- Adds a text to those kept under a key, of which the newest `most` stay, for `kept_us`.
    note = function(now, key, text, most, kept_us)
      now_us = now
      collect()
      commands.RPUSH(key, text)
      commands.LTRIM(key, -most, -1)
      commands.PEXPIRE(key, kept_us / 1000)
    end,
    -- The texts kept under a key, which then are not.
    take = function(now, key)
      now_us = now
      local record = db[key]
      local texts = record and record[EXPIRY] > now_us and commands.LRANGE(key, 0, -1) or {}
      commands.DEL(key)
      return unpack(texts)
    end,
    statistics = function()
      return size, evicted, collectgarbage('count') * 1024
    end,
  }
end
