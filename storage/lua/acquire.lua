#!lua flags=allow-oom
-- Take a partition over under a new epoch.
-- KEYS: state, log, ids. ARGV: owner, then of what is known from elsewhere: epoch, first_offset, next_offset,
-- ids_since_ms; epoch -1 when nothing is known. Returns the state, or nothing when there is none to go on from.
local fields = {'epoch', 'first_offset', 'next_offset', 'ids_since_ms', 'ids_last_ms'}
local found = redis.call('HMGET', KEYS[1], unpack(fields))
local known_epoch, known_next = tonumber(ARGV[2]), tonumber(ARGV[4])

-- The newest id that a stream ever had: an entry must be newer, even where the state is gone and the stream is not.
local function newest(stream)
    if redis.call('EXISTS', stream) == 0 then return nil end
    local info = redis.call('XINFO', 'STREAM', stream)
    for i = 1, #info, 2 do
        if info[i] == 'last-generated-id' then return tonumber(string.match(info[i + 1], '^%d+')) end
    end
end

local function store(epoch, first_offset, next_offset, ids_since_ms, ids_last_ms)
    local values = {epoch, first_offset, next_offset, ids_since_ms, ids_last_ms}
    local written = {'owner', ARGV[1]}
    for i, field in ipairs(fields) do
        table.insert(written, field)
        table.insert(written, string.format('%.0f', values[i]))
    end
    redis.call('HSET', KEYS[1], unpack(written))
    return redis.call('HMGET', KEYS[1], 'epoch', 'first_offset', 'next_offset', 'ids_since_ms')
end

if not found[1] then
    if known_epoch < 0 then return false end
    local next_offset = math.max(known_next, (newest(KEYS[2]) or -1) + 1)
    return store(known_epoch + 1, tonumber(ARGV[3]), next_offset, tonumber(ARGV[5]), newest(KEYS[3]) or 0)
end

local epoch, first_offset, next_offset, ids_since_ms, ids_last_ms =
    tonumber(found[1]), tonumber(found[2]), tonumber(found[3]), tonumber(found[4]), tonumber(found[5])
if known_epoch > epoch or known_next > next_offset then
    ids_since_ms = math.max(ids_since_ms, tonumber(ARGV[5]))
end
return store(math.max(epoch, known_epoch) + 1, first_offset, math.max(next_offset, known_next), ids_since_ms, ids_last_ms)
