-- The names that the sandbox of ratelimit/stores/memory.lua holds, and ARGV, which Redis alone has;
-- tests/test_house.py holds the two lists together.
std = "none"
max_line_length = 100
read_globals = {"ARGV", "KEYS", "error", "math", "pcall", "redis", "string", "tonumber", "type"}
files["lua/decide.lua"] = {
  read_globals = {"chunks"}, -- a local of ratelimit/stores/script.py's first line
  ignore = {"211/CHARGE"}, -- the action that is none of the others; its number is the list's
}
files["ratelimit/stores/memory.lua"] = {std = "lua51"} -- it makes the sandbox, and so stands outside it
