local id, lease_us, guess_us, keep_s = take(), number(), number(), take()

local function wait(counter, most, part_us, parts, amount)
  local excess = used(counter, part_us, parts) + amount - most
  if excess <= 0 or amount == 0 then
    return 0
  elseif amount > most then
    return math.huge
  end
  for i = 1, #counter.booked, 2 do
    excess = excess - counter.booked[i + 1]
    if excess <= 0 then
      return (counter.booked[i] + parts) * part_us - now
    end
  end
  return guess_us
end

if redis.call('HEXISTS', leases, id) == 1 then
  return reply('', 0) -- asked again because the first answer was lost
end

-- The limit that keeps it waiting longest.
local full, longest = '', math.max(0, (clock.opens or 0) - now)
if longest > 0 then
  full = 'store'
end
local held = {}
while place < #ARGV do
  local key, kind, name, most, part_us, parts, amount = take(), take(), take(), number(), number(), number(), number()
  local waits = wait(record(key), most, part_us, parts, amount)
  held[#held + 1] = { key, kind, part_us, parts, amount, now }
  if waits > longest then
    full, longest = name, waits
  end
end
if full ~= '' then
  return reply(full, longest == math.huge and -1 or longest)
end

for _, part in ipairs(held) do
  local key, kind, part_us, _, amount = unpack(part)
  if kind == 'requests' then
    book(record(key), math.floor(now / part_us), amount)
  else
    record(key).held = record(key).held + amount
  end
end
clock.granted = clock.granted + 1
redis.call('HSET', leases, id, cmsgpack.pack(held))
redis.call('ZADD', due, now + lease_us, id)
local answer = reply('', 0)
for _, key in ipairs(KEYS) do
  redis.call('EXPIRE', key, keep_s)
end
return answer
