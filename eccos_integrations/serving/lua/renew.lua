local id, lease_us = take(), number()
if redis.call('HEXISTS', leases, id) == 0 then
  return reply(0)
end
redis.call('ZADD', due, now + lease_us, id)
return reply(1)
