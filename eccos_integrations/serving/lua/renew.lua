local lease_us, renewed = number(), {}
while place < #ARGV do
  local id = take()
  local known = redis.call('HEXISTS', leases, id)
  if known == 1 then
    redis.call('ZADD', due, now + lease_us, id)
  end
  renewed[#renewed + 1] = known
end
return reply(renewed)
