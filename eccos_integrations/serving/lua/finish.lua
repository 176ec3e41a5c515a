local ended = {}
while place < #ARGV do
  local id, how, tokens, usd = take(), take(), number(), number()
  local spent = nil
  if how == 'used' then
    spent = { tokens = tokens, usd = usd }
  elseif how == 'unsent' then
    spent = false
  end
  ended[#ended + 1] = finish(id, now, spent)
end
return reply(ended)
