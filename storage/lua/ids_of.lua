#!lua flags=allow-oom
-- The ids that one record brought: to be looked at, or forgotten. An entry's id is <appended_ms>-<offset>, and both rise
-- along the stream, so the time is found by halving.
-- KEYS: state, ids. ARGV: offset; '' to look, or the epoch under which they are forgotten. Returns the fingerprints, or
-- nothing where there are none.
local offset = tonumber(ARGV[1])

local function parts(entry)
    local ms, at = string.match(entry[1], '^(%d+)-(%d+)$')
    return tonumber(ms), tonumber(at)
end

local first = redis.call('XRANGE', KEYS[2], '-', '+', 'COUNT', 1)[1]
if not first then return false end

-- The latest time from which on the first entry is not of a later record.
local low = parts(first)
local high = parts(redis.call('XREVRANGE', KEYS[2], '+', '-', 'COUNT', 1)[1])
while low < high do
    local middle = math.ceil((low + high) / 2)
    local ms, at = parts(redis.call('XRANGE', KEYS[2], string.format('%.0f-0', middle), '+', 'COUNT', 1)[1])
    if at <= offset then low = ms else high = middle - 1 end
end

local id = string.format('%.0f-%.0f', low, offset)
local entry = redis.call('XRANGE', KEYS[2], id, id)[1]
if not entry then return false end
if ARGV[2] ~= '' then
    if redis.call('HGET', KEYS[1], 'epoch') ~= ARGV[2] then return false end
    redis.call('XDEL', KEYS[2], id)
end
return entry[2][2]
