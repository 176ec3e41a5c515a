local found = {}
while place < #ARGV do
  local key, part_us, parts = take(), number(), number()
  found[#found + 1], found[#found + 2] = used(key, part_us, parts), record(key).overrun
end
return reply(found)
