local id, how, tokens, usd = take(), take(), number(), number()
local spent = nil
if how == 'reconcile' then
  spent = { tokens = tokens, usd = usd }
elseif how == 'unsent' then
  spent = false
end
return reply(finish(id, now, spent))
