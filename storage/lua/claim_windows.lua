#!lua flags=allow-oom
-- Take the windows of a partition over under an epoch; to count on, or to build them anew.
-- KEYS: checkpoint. ARGV: owner, epoch, 'go on' or 'rebuild'. Returns all fields, 'fenced', or nothing when there is
-- no checkpoint to go on from.
local found = redis.call('HMGET', KEYS[1], 'epoch', 'owner')
local rebuild = ARGV[3] == 'rebuild'
if found[1] then
    local epoch, mine = tonumber(found[1]), tonumber(ARGV[2])
    -- The same epoch again is a call whose answer was lost, unless another owner chose the same number.
    if epoch > mine or (epoch == mine and found[2] ~= ARGV[1]) then return 'fenced' end
elseif not rebuild then
    return false
end
if rebuild then
    redis.call('HSET', KEYS[1], 'next_offset', '0', 'watermark_ms', '0', 'state', 'rebuilding')
end
redis.call('HSET', KEYS[1], 'epoch', ARGV[2], 'owner', ARGV[1])
return redis.call('HGETALL', KEYS[1])
