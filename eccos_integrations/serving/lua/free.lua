local found = {}
while place < #ARGV do
  local key, part_us, parts = take(), number(), number()
  local counter = record(key)
  found[#found + 1], found[#found + 2] = used(counter, part_us, parts), counter.overrun
end
return reply(unpack(found))
