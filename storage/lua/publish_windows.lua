#!lua
-- Write windows and move checkpoints: each partition's publication whole or not at all, all in one step. The header
-- has no flags on purpose: a server that is out of memory refuses the whole script before it has written anything.
-- KEYS, for each publication: its checkpoint, its windows, its groups, its windows and groups that are gone.
-- ARGV: number of publications; then for each: epoch, from_offset, next_offset, watermark_ms, and the numbers of its
-- windows, groups, built projects, windows and groups that are gone; of each window: value, expires_at; of each group:
-- expires_at, number of members (some hundreds at most, because of Lua's stack), members; of each built project: field,
-- value; of each group that is gone: number of members, members.
-- Returns an outcome for each.
local call, args, keys = redis.call, ARGV, KEYS
local now = tonumber(call('TIME')[1])

local function judge(checkpoint, epoch, from_offset, next_offset)
    local state = call('HMGET', checkpoint, 'epoch', 'next_offset', 'state', 'watermark_ms')
    if not state[1] or tonumber(state[1]) < epoch then return 'lost' end
    if tonumber(state[1]) > epoch then return 'fenced' end
    if state[3] == 'rebuilding' then return 'published', state end
    local at = tonumber(state[2])
    -- At next_offset already: a repetition, whose first answer was lost.
    if at == from_offset or at == next_offset then return 'published', state end
    return at > from_offset and 'fenced' or 'lost'
end

local outcomes = {}
local arg, key = 2, 1
for i = 1, tonumber(args[1]) do
    local checkpoint, next_offset, watermark_ms = keys[key], args[arg + 2], args[arg + 3]
    local windows, groups, built = tonumber(args[arg + 4]), tonumber(args[arg + 5]), tonumber(args[arg + 6])
    local gone, gone_groups = tonumber(args[arg + 7]), tonumber(args[arg + 8])
    local outcome, state = judge(checkpoint, tonumber(args[arg]), tonumber(args[arg + 1]), tonumber(next_offset))
    local write = outcome == 'published'
    outcomes[i] = outcome
    arg, key = arg + 9, key + 1

    if write then
        for n = 0, windows - 1 do
            -- One whose time is over is not written: some servers call such a time an error.
            if tonumber(args[arg + 2 * n + 1]) > now then
                call('SET', keys[key + n], args[arg + 2 * n], 'EXAT', args[arg + 2 * n + 1])
            end
        end
    end
    arg, key = arg + 2 * windows, key + windows

    for n = 0, groups - 1 do
        local expires_at, last = args[arg], arg + 1 + tonumber(args[arg + 1])
        if write and tonumber(expires_at) > now then
            call('SADD', keys[key + n], unpack(args, arg + 2, last))
            call('EXPIREAT', keys[key + n], expires_at)
        end
        arg = last + 1
    end
    key = key + groups

    if write then
        for n = 0, built - 1 do
            call('HSET', checkpoint, args[arg + 2 * n], args[arg + 2 * n + 1])
        end
        if state[3] ~= 'rebuilding' then call('HSET', checkpoint, 'next_offset', next_offset) end
        if tonumber(watermark_ms) > tonumber(state[4]) then call('HSET', checkpoint, 'watermark_ms', watermark_ms) end
    end
    arg = arg + 2 * built

    if write then
        for n = 0, gone - 1 do call('DEL', keys[key + n]) end
    end
    key = key + gone

    for n = 0, gone_groups - 1 do
        local last = arg + tonumber(args[arg])
        if write then call('SREM', keys[key + n], unpack(args, arg + 1, last)) end
        arg = last + 1
    end
    key = key + gone_groups
end
return outcomes
