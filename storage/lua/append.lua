#!lua
-- Append one record to a partition: all of it or nothing. The header has no flags on purpose: a server that is
-- out of memory refuses the whole script before it has written anything.
-- KEYS: state, log, ids. ARGV: epoch, offset, record, fingerprints ('' for none). Returns the outcome.
local state = redis.call('HMGET', KEYS[1], 'epoch', 'next_offset', 'ids_last_ms')
if not state[1] then return 'lost' end

local epoch, next_offset = tonumber(state[1]), tonumber(state[2])
local my_epoch, my_offset = tonumber(ARGV[1]), tonumber(ARGV[2])
if epoch > my_epoch then return 'fenced' end
if epoch < my_epoch or next_offset < my_offset then return 'lost' end
if next_offset > my_offset then return 'fenced' end

-- Not `<offset>-0`: a stream has no entry 0-0.
redis.call('XADD', KEYS[2], ARGV[2] .. '-1', 'r', ARGV[3])
local state_now = {'next_offset', string.format('%.0f', my_offset + 1)}
if ARGV[4] ~= '' then
    local now = redis.call('TIME')
    local now_ms = tonumber(now[1]) * 1000 + math.floor(tonumber(now[2]) / 1000)
    -- Entry ids of a stream must rise: time stands still here while the clock is behind.
    local ids_ms = string.format('%.0f', math.max(now_ms, tonumber(state[3])))
    redis.call('XADD', KEYS[3], ids_ms .. '-' .. ARGV[2], 'f', ARGV[4])
    state_now[3], state_now[4] = 'ids_last_ms', ids_ms
end
redis.call('HSET', KEYS[1], unpack(state_now))
return 'appended'
