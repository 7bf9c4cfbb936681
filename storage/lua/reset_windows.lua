#!lua flags=allow-oom
-- End a rebuild: the partition's windows are complete below an offset.
-- KEYS: checkpoint. ARGV: epoch, next_offset, then of each built project: field, value.
-- Returns 'live', 'fenced' or 'lost'.
local found = redis.call('HMGET', KEYS[1], 'epoch', 'next_offset', 'state')
local epoch = tonumber(ARGV[1])
if not found[1] or tonumber(found[1]) < epoch then return 'lost' end
if tonumber(found[1]) > epoch then return 'fenced' end
if found[3] == 'live' then
    return tonumber(found[2]) == tonumber(ARGV[2]) and 'live' or 'fenced'
end
for _, field in ipairs(redis.call('HKEYS', KEYS[1])) do
    if string.sub(field, 1, 6) == 'built:' then redis.call('HDEL', KEYS[1], field) end
end
redis.call('HSET', KEYS[1], 'next_offset', ARGV[2], 'state', 'live')
for i = 3, #ARGV, 2 do
    redis.call('HSET', KEYS[1], ARGV[i], ARGV[i + 1])
end
return 'live'
