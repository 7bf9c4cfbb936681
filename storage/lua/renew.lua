#!lua flags=allow-oom
-- A new epoch for the writer that has the partition already: what it sent under the old one is refused from now on.
-- KEYS: state. ARGV: owner, epoch. Returns the state, or 'fenced', or 'lost'.
local found = redis.call('HMGET', KEYS[1], 'epoch', 'owner')
if not found[1] then return 'lost' end

local epoch, my_epoch = tonumber(found[1]), tonumber(ARGV[2])
if epoch < my_epoch then return 'lost' end
-- A higher epoch of our own: an earlier call whose answer was lost.
if epoch > my_epoch and found[2] ~= ARGV[1] then return 'fenced' end

redis.call('HSET', KEYS[1], 'epoch', string.format('%.0f', epoch + 1), 'owner', ARGV[1])
return redis.call('HMGET', KEYS[1], 'epoch', 'first_offset', 'next_offset', 'ids_since_ms')
