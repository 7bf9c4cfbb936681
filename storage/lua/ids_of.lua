#!lua flags=allow-oom
-- The ids that records brought: those of one to be looked at, or those of several forgotten. An entry's id is
-- <appended_ms>-<offset>, and both rise along the stream, so the time is found by halving.
-- KEYS: state, ids. ARGV: offset; '' to look, or the epoch under which they are forgotten, the offset after the last of
-- them, and how many entries to drop at most. Returns the fingerprints of the one, or nothing where there are none; or
-- how many entries were dropped.
local offset = tonumber(ARGV[1])
local forgets = ARGV[2] ~= ''
if forgets and redis.call('HGET', KEYS[1], 'epoch') ~= ARGV[2] then return 0 end

local function parts(entry)
    local ms, at = string.match(entry[1], '^(%d+)-(%d+)$')
    return tonumber(ms), tonumber(at)
end

local first = redis.call('XRANGE', KEYS[2], '-', '+', 'COUNT', 1)[1]
if not first then return forgets and 0 end

-- The latest time from which on the first entry is not of a later record.
local low = parts(first)
local high = parts(redis.call('XREVRANGE', KEYS[2], '+', '-', 'COUNT', 1)[1])
while low < high do
    local middle = math.ceil((low + high) / 2)
    local ms, at = parts(redis.call('XRANGE', KEYS[2], string.format('%.0f-0', middle), '+', 'COUNT', 1)[1])
    if at <= offset then low = ms else high = middle - 1 end
end

local id = string.format('%.0f-%.0f', low, offset)
if not forgets then
    local entry = redis.call('XRANGE', KEYS[2], id, id)[1]
    return entry and entry[2][2]
end

local dropped, next_offset = 0, tonumber(ARGV[3])
for _, entry in ipairs(redis.call('XRANGE', KEYS[2], id, '+', 'COUNT', ARGV[4])) do
    local _, at = parts(entry)
    if at >= next_offset then break end
    dropped = dropped + redis.call('XDEL', KEYS[2], entry[1])
end
return dropped
