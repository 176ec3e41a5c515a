-- Stands in front of every script. All that a ledger knows is in three keys of one slot:
--   counts  hash: 'clock', and per limit what calls in flight hold and what the window's sub-counters have booked
--   due     sorted set: leases by the time they expire
--   leases  hash: what each lease holds
-- Amounts are whole, times are microseconds. The arithmetic is that of memory.py.
local counts, due, leases = KEYS[1], KEYS[2], KEYS[3]

local place = 0
local function take()
  place = place + 1
  return ARGV[place]
end
local function number()
  return tonumber(take())
end

local records = {}
local function record(key)
  if not records[key] then
    local packed = redis.call('HGET', counts, key)
    records[key] = packed and cmsgpack.unpack(packed) or { held = 0, overrun = 0, booked = {} }
  end
  return records[key]
end

-- The caller brings what it knows of this ledger: its epoch, how many leases it had granted, and between which times
-- it must be now. A server's clock that is set is noticed by that.
local epoch, granted, earliest, latest, fresh_epoch, blind_us = take(), number(), number(), number(), take(), number()
local SLACK_US = 1000000
local clock = record('clock')
local known = clock.epoch == epoch
local time = redis.call('TIME')
local server = time[1] * 1000000 + time[2]
local now = server + (clock.offset or 0)
if known and now < earliest - SLACK_US then
  now = earliest
elseif known and now > latest + SLACK_US then
  now = latest
end
now = math.max(now, clock.now or now)
clock.now, clock.offset = now, now - server

-- A ledger that is new to a caller who was granted leases, or grants fewer than it once had, has lost its records. Until
-- all that went out before is over, nothing goes out.
local forgot = granted > 0 and (not known or clock.granted < granted)
if not clock.epoch or (known and forgot) then
  clock.epoch, clock.born = fresh_epoch, now
end
clock.granted = clock.granted or 0
if forgot then
  clock.opens = math.max(clock.opens or 0, clock.born + blind_us)
end

-- `booked` is flat: number of the sub-counter, amount, and so on, oldest first. What counts of it now is summed up once
-- for all leases of a script.
local sums = {}
local function used(key, part_us, parts)
  local counter = record(key)
  if not sums[key] then
    local oldest = math.floor(now / part_us) - parts
    local kept, sum = {}, 0
    for i = 1, #counter.booked, 2 do
      if counter.booked[i] > oldest then
        kept[#kept + 1], kept[#kept + 2] = counter.booked[i], counter.booked[i + 1]
        sum = sum + counter.booked[i + 1]
      end
    end
    counter.booked, sums[key] = kept, sum
  end
  return counter.held + sums[key]
end

local function book(key, part, amount)
  local booked = record(key).booked
  local i = #booked - 1
  while i > 0 and booked[i] > part do
    i = i - 2
  end
  if i > 0 and booked[i] == part then
    booked[i + 1] = booked[i + 1] + amount
  else
    table.insert(booked, i + 2, amount)
    table.insert(booked, i + 2, part)
  end
  if sums[key] then
    sums[key] = sums[key] + amount
  end
end

-- `spent`: amounts by kind, nil for what was reserved, false for what was never sent.
local function finish(id, at, spent)
  local packed = redis.call('HGET', leases, id)
  if not packed then
    return 0
  end
  redis.call('HDEL', leases, id)
  redis.call('ZREM', due, id)
  for _, held in ipairs(cmsgpack.unpack(packed)) do
    local key, kind, part_us, parts, amount, since = unpack(held)
    local counter = record(key)
    if kind ~= 'requests' then
      counter.held = counter.held - amount
      if spent ~= false and parts > 0 then
        local real = spent and spent[kind] or amount
        book(key, math.floor(at / part_us), real)
        counter.overrun = counter.overrun + math.max(0, real - amount)
      end
    elseif spent == false and counter.booked[1] and math.floor(since / part_us) >= counter.booked[1] then
      book(key, math.floor(since / part_us), -amount)
    end
  end
  return 1
end

local expired = redis.call('ZRANGEBYSCORE', due, '-inf', now, 'WITHSCORES')
for i = 1, #expired, 2 do
  finish(expired[i], tonumber(expired[i + 1]), nil)
end

local function reply(answers)
  for key, packed in pairs(records) do
    redis.call('HSET', counts, key, cmsgpack.pack(packed))
  end
  return { now, clock.epoch, clock.granted, forgot and 1 or 0, unpack(answers) }
end
