#!lua flags=allow-oom
-- Drop records below an offset (TR-1) and ids older than a time. Must work when memory is full: it is what frees it.
-- KEYS: state, log, ids. ARGV: epoch, below_offset, ids_before_ms.
local state = redis.call('HMGET', KEYS[1], 'epoch', 'first_offset', 'next_offset', 'ids_since_ms')
if not state[1] or tonumber(state[1]) ~= tonumber(ARGV[1]) then return 'fenced' end

local below = math.min(tonumber(ARGV[2]), tonumber(state[3]))
if below > tonumber(state[2]) then
    redis.call('XTRIM', KEYS[2], 'MINID', '=', string.format('%.0f-0', below))
    redis.call('HSET', KEYS[1], 'first_offset', string.format('%.0f', below))
end
if tonumber(ARGV[3]) > tonumber(state[4]) then
    -- By whole nodes of the stream, which is cheap; without LIMIT 0 a call would stop at 10,000 entries.
    redis.call('XTRIM', KEYS[3], 'MINID', '~', ARGV[3], 'LIMIT', '0')
    redis.call('HSET', KEYS[1], 'ids_since_ms', ARGV[3])
end
return 'trimmed'
