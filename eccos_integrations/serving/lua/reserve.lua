-- Leases one after another: each is reserved whole or not at all.
local lease_us, guess_us, keep_s, limits = number(), number(), take(), {}
for i = 1, number() do
  limits[i] = { key = take(), kind = take(), name = take(), most = number(), part_us = number(), parts = number() }
end

local function wait(limit, amount)
  local counter = record(limit.key)
  local excess = used(limit.key, limit.part_us, limit.parts) + amount - limit.most
  if excess <= 0 or amount == 0 then
    return 0
  elseif amount > limit.most then
    return math.huge
  end
  for i = 1, #counter.booked, 2 do
    excess = excess - counter.booked[i + 1]
    if excess <= 0 then
      return (counter.booked[i] + limit.parts) * limit.part_us - now
    end
  end
  return guess_us
end

-- The limit that keeps a lease waiting longest, '' where none does, and how long.
local function reserve(id, parts)
  if redis.call('HEXISTS', leases, id) == 1 then
    return '', 0 -- asked again because the first answer was lost
  end
  local full, longest = '', math.max(0, (clock.opens or 0) - now)
  if longest > 0 then
    full = 'store'
  end
  for _, part in ipairs(parts) do
    local waits = wait(part.limit, part.amount)
    if waits > longest then
      full, longest = part.limit.name, waits
    end
  end
  if full ~= '' then
    return full, longest == math.huge and -1 or longest
  end
  local held = {}
  for i, part in ipairs(parts) do
    local limit, amount = part.limit, part.amount
    if limit.kind == 'requests' then
      book(limit.key, math.floor(now / limit.part_us), amount)
    else
      record(limit.key).held = record(limit.key).held + amount
    end
    held[i] = { limit.key, limit.kind, limit.part_us, limit.parts, amount, now }
  end
  clock.granted = clock.granted + 1
  redis.call('HSET', leases, id, cmsgpack.pack(held))
  redis.call('ZADD', due, now + lease_us, id)
  return '', 0
end

local answers = {}
while place < #ARGV do
  local id, parts = take(), {}
  for i = 1, number() do
    parts[i] = { limit = limits[number()], amount = number() }
  end
  answers[#answers + 1], answers[#answers + 2] = reserve(id, parts)
end
local answer = reply(answers)
for _, key in ipairs(KEYS) do
  redis.call('EXPIRE', key, keep_s)
end
return answer
